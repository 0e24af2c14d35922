"""Flow-DPO: learn from pairs, preferred against rejected (arXiv 2501.13918, 2311.12908).

With ``L`` the reduced error of a view, policy = adapter on, reference = adapter off, one noise and one sigma for both
sides::

    win_adv  = L_ref(w) - L_pol(w)          lose_adv = L_pol(l) - L_ref(l)          margin = win_adv + lose_adv
    loss     = mean_b[ -log sigmoid(beta / 2 * margin_b) ]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowhooks.adapters.names import USE_DORA
from flowhooks.errors import TrainingError
from flowhooks.hooks.anchor_regularizer.hook import AnchorRegularizer
from flowhooks.hooks.flow_dpo import FlowDPOSpec
from flowhooks.hooks.flow_dpo.detectors import Terms, detect, warn
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View
from flowhooks.transfer import sent

WIN, LOSE = "main", "rejected"
SUM, MEAN, MASKED_MEAN = "sum", "mean", "masked_mean"


def reduce_error(error: Tensor, norm_type: str, mask: Tensor | None) -> Tensor:
    """One number per sample, ``[B]``, from an error ``[B, ...]`` that the mask was already applied to.

    ``sum`` adds all elements, ``mean`` averages all, ``masked_mean`` divides the sum by the mask's own sum (at least
    1); without a mask it is ``mean``.
    """
    flat = error.flatten(1)
    if norm_type == SUM:
        return flat.sum(1)
    if norm_type == MASKED_MEAN and mask is not None:
        return flat.sum(1) / mask.expand_as(error).flatten(1).sum(1).clamp(min=1)
    return flat.mean(1)


def dpo_loss(margin: Tensor, beta: float | Tensor) -> Tensor:
    """``-log sigmoid(beta / 2 * margin)`` of each sample, ``[B]``; average it last."""
    return -F.logsigmoid(beta / 2 * margin)


def gradient_factor(margin: Tensor, beta: float | Tensor) -> Tensor:
    """``sigmoid(-beta / 2 * margin)`` ``[B]``: how much of a pair's gradient is left; 0.5 at the start, 0 when
    saturated."""
    return torch.sigmoid(-beta / 2 * margin)


def auto_beta_factor(target: float) -> float:
    """``2 ln((1 - g) / g)``: the ``beta * |margin|`` at which the gradient factor is ``g``. Raises ValueError outside
    (0, 0.5)."""
    if not 0 < target < 0.5:
        raise ValueError(f"`auto_beta_target_gf` must lie strictly between 0 and 0.5, got {target}")
    return 2 * math.log((1 - target) / target)


class AutoBeta:
    """Computes beta from the running size of the margin: ``2 ln((1 - g) / g) / EMA(|margin|)``, bias-corrected. All on
    the device.

    Until a margin rises above rounding (``FLOOR`` of the error it is a difference of) the configured beta is used: with
    a fresh adapter the first margin is exactly 0.

    Args:
        beta: used until then.
        target: gradient factor g in (0, 0.5).
        decay: of the EMA, in [0, 1).
        low, high: clamp, or None.
    """

    FLOOR = 1e-6

    def __init__(self, *, beta: float, target: float, decay: float, low: float | None, high: float | None):
        self.factor = auto_beta_factor(target)
        self.beta, self.decay, self.low, self.high = beta, decay, low, high
        self.average = torch.zeros((), dtype=torch.float64)
        self.updates = torch.zeros((), dtype=torch.float64)

    def update(self, margin: Tensor, scale: Tensor) -> None:
        """Take in the batch's mean ``|margin|`` over all processes; ``scale`` is the mean error it is a difference
        of."""
        self.average, self.updates = (sent(t, margin.device) for t in (self.average, self.updates))
        counts = margin > self.FLOOR * scale
        moved = self.decay * self.average + (1 - self.decay) * margin.double()
        self.average = torch.where(counts, moved, self.average)
        self.updates = self.updates + counts

    def value(self) -> Tensor:
        """The unclamped beta now, 0-dim."""
        corrected = self.average / (1 - self.decay**self.updates)
        return torch.where(self.updates > 0, self.factor / corrected, self.beta)

    def clamped(self) -> Tensor:
        """The beta to use, 0-dim."""
        value = self.value()
        return value if self.low is None and self.high is None else value.clamp(self.low, self.high)


class FlowDPO(FlowDPOSpec, Hook):
    """Owns the reduction and the objective of a preference run."""

    health = "flow_dpo_implicit_accuracy"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._adapter: Any = None
        self._terms = Terms(
            auto_beta=self.auto_beta,
            target=self.auto_beta_target_gf,
            low=self.auto_beta_min,
            high=self.auto_beta_max,
            sft_loss_weight=self.sft_loss_weight,
        )
        self.adapted: AutoBeta | None = None
        if self.auto_beta:
            self.adapted = AutoBeta(
                beta=self.beta,
                target=self.auto_beta_target_gf,
                decay=self.auto_beta_decay,
                low=self.auto_beta_min,
                high=self.auto_beta_max,
            )

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        self._adapter = session.adapter
        anchors = [hook.weight for hook in session.assembly.hooks if isinstance(hook, AnchorRegularizer)]
        self._terms = replace(self._terms, anchor=max(anchors, default=0.0))
        try:
            yield
        finally:
            self._adapter = None

    def reduce(self, step: Step, view: View, error: Tensor) -> Tensor:
        return reduce_error(error, self.norm_type, view.mask)

    def objective(self, step: Step) -> Tensor:
        weight = step.views[WIN].weight
        margin = self._margin(step)
        if self.adapted and step.training:
            scale = step.score(WIN, "reference") + step.score(LOSE, "reference")
            sizes = torch.stack([step.mean(margin.detach().abs(), weight), step.mean(scale, weight)])
            self.adapted.update(*(step.all_reduce(sizes) / step.draws.world_size))
        loss = step.mean(dpo_loss(margin, self._beta(margin)), weight)
        if step.training and step.draws.micro_step == 0 and not margin.is_meta:
            self._self_test(step, margin.detach())
        if self.sft_loss_weight:
            loss = loss + self.sft_loss_weight * step.mean(self._plain_error(step), weight)
        return loss

    def metrics(self, step: Step) -> dict[str, Tensor]:
        """Returns NaN for all but beta where no pair of the batch is compared, because all its masks are black."""
        weight = step.views[WIN].weight
        margin = self._margin(step)
        beta = self._beta(margin)
        named = {
            "loss": dpo_loss(margin, beta),
            "margin": margin,
            "win_adv": step.score(WIN, "reference") - step.score(WIN),
            "lose_adv": step.score(LOSE) - step.score(LOSE, "reference"),
            "policy_win_err": step.score(WIN),
            "policy_lose_err": step.score(LOSE),
            "ref_win_err": step.score(WIN, "reference"),
            "ref_lose_err": step.score(LOSE, "reference"),
            "negative_margin_pct": 100.0 * (margin < 0),
            "implicit_accuracy": 1.0 * (margin > 0),
            "gradient_factor": gradient_factor(margin, beta),
        }
        found = {name: step.mean(value.to(margin.dtype), weight) for name, value in named.items()}
        if self.sft_loss_weight:
            found["sft_loss"] = step.mean(self._plain_error(step), weight)
        found.update(detect(step, named["win_adv"], named["lose_adv"]))
        if weight is not None:
            # A mean over nothing: as 0, a gradient factor would read as saturated.
            compared = step.all_reduce(weight.sum()) > 0
            found = {name: torch.where(compared, value, math.nan) for name, value in found.items()}
        found["beta"] = torch.as_tensor(beta, dtype=margin.dtype, device=margin.device)
        if self.adapted:
            found["beta_clamped"] = (self.adapted.value() != self.adapted.clamped()).to(margin.dtype)
        return {f"flow_dpo_{name}": value for name, value in found.items()}

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        return warn(metrics, self._terms)

    def state_dict(self) -> dict[str, Any]:
        if self.adapted is None:
            return {}
        return {"average": self.adapted.average.clone(), "updates": self.adapted.updates.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.adapted is not None:
            self.adapted.average, self.adapted.updates = state["average"], state["updates"]

    def _margin(self, step: Step) -> Tensor:
        win_adv = step.score(WIN, "reference") - step.score(WIN)
        return win_adv + step.score(LOSE) - step.score(LOSE, "reference")

    def _beta(self, margin: Tensor) -> float | Tensor:
        return sent(self.adapted.clamped(), margin.device, margin.dtype) if self.adapted else self.beta

    def _plain_error(self, step: Step) -> Tensor:
        return (step.predict(WIN) - step.target(WIN)).square().flatten(1).mean(1)

    def _self_test(self, step: Step, margin: Tensor) -> None:
        """Check, on the first step, that the policy without its adapter is the reference.

        A new adapter changes nothing yet, so its margins must be exactly 0 and the loss ln 2. One that starts from a
        file is switched off, and the predictions must be the same to the bit. So is a DoRA: it divides by norms, which
        compiled code may sum up in another order than those it was made with.
        """
        loss = dpo_loss(margin, self._beta(margin)).mean()
        fresh = self._adapter is not None and self._adapter.fresh and not self._adapter.config.get(USE_DORA)
        if fresh:
            sound = not bool((margin != 0).any()) and math.isclose(float(loss), math.log(2), rel_tol=1e-6)
        else:
            sound = self._is_reference(step, nullcontext())
        if sound:
            return
        culprits = [
            key
            for key, hook in zip(step.session.assembly.keys, step.session.assembly.hooks, strict=True)
            if self._is_reference(step, hook.disabled())
        ]
        if self._is_reference(step, nullcontext()):
            cause = "the reference is not the base model: the adapter changes predictions though it is new"
        elif culprits:
            named = " and ".join(f"`{key}`" for key in culprits)
            cause = f"the reference is not the base model: {named} changes the policy alone; take it out of this run"
        else:
            cause = (
                "the reference is not the base model: something else changes it between two passes (dropout in the "
                "base, another adapter, a random layer)"
            )
        found = (
            f"the margin must be exactly 0 and the loss ln 2, found a margin of up to {float(margin.abs().max()):.3g} "
            f"and a loss of {float(loss):.6g}"
            if fresh
            else "the policy with its adapter off must predict what the reference predicts, and does not"
        )
        raise TrainingError(f"Flow-DPO self-test: before the first update {found}; {cause}")

    def _is_reference(self, step: Step, without: AbstractContextManager) -> bool:
        """Whether the policy, its adapter off and whatever ``without`` leaves out, predicts what the reference does."""
        with ExitStack() as off:
            if self._adapter is not None:
                off.enter_context(self._adapter.disabled())
            off.enter_context(without)
            found: dict[str, Tensor] = {}
            for together in step.groups((WIN, LOSE)):
                with step.playing(POLICY) as model:
                    found |= step.through(model, together, POLICY)
        return all(torch.equal(found[view], step.predict(view, "reference")) for view in (WIN, LOSE))
