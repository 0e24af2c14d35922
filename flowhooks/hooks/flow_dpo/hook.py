"""Flow-DPO: learn from pairs, preferred against rejected (arXiv 2501.13918, 2311.12908).

With ``L`` the reduced error of a view, policy = adapter on, reference = adapter off, one noise and one sigma for both
sides::

    win_adv  = L_ref(w) - L_pol(w)          lose_adv = L_pol(l) - L_ref(l)          margin = win_adv + lose_adv
    loss     = mean_b[ -log sigmoid(beta / 2 * margin_b) ]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowhooks.hooks.detectors import Terms
from flowhooks.hooks.flow_dpo import FlowDPOSpec, auto_beta_bounds
from flowhooks.hooks.preference import PairPreference
from flowhooks.hooks.preference_spec import LOSE, WIN
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View
from flowhooks.transfer import sent


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

    Attributes:
        bounds: least and largest value that it computes, beside the clamp; they leave the configured beta alone. None
            sets no bounds.
    """

    FLOOR = 1e-6

    def __init__(self, *, beta: float, target: float, decay: float, low: float | None, high: float | None):
        self.factor = auto_beta_factor(target)
        self.beta, self.decay, self.low, self.high = beta, decay, low, high
        self.bounds: tuple[float, float] | None = None
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
        if self.low is not None or self.high is not None:
            value = value.clamp(self.low, self.high)
        return value if self.bounds is None else torch.where(self.updates > 0, value.clamp(*self.bounds), value)


class FlowDPO(FlowDPOSpec, PairPreference):
    """Owns the reduction and the objective of a preference run."""

    health = "flow_dpo_implicit_accuracy"

    @property
    def first_loss(self) -> float:
        return math.log(2)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.adapted: AutoBeta | None = None
        if self.auto_beta:
            self.adapted = AutoBeta(
                beta=self.beta,
                target=self.auto_beta_target_gf,
                decay=self.auto_beta_decay,
                low=self.auto_beta_min,
                high=self.auto_beta_max,
            )

    def terms(self) -> Terms:
        return replace(
            super().terms(),
            adapts=True,
            auto_beta=self.auto_beta,
            target=self.auto_beta_target_gf,
        )

    def reduce(self, step: Step, view: View, error: Tensor) -> Tensor:
        if self.adapted is not None:
            bounds = auto_beta_bounds(self.options(), error[0].numel())
            if bounds != self.adapted.bounds:
                self.adapted.bounds = bounds
                self._terms = replace(self._terms, low=bounds[0], high=bounds[1])
        return super().reduce(step, view, error)

    def pair_loss(self, step: Step, margin: Tensor) -> Tensor:
        return dpo_loss(self.capped(margin), self._beta(margin))

    def pull(self, margin: Tensor) -> float | Tensor:
        return self._beta(margin) / 4

    def follow(self, step: Step, margin: Tensor) -> None:
        if self.adapted is None:
            return
        weight = step.views[WIN].weight
        scale = step.score(WIN, self.role) + step.score(LOSE, self.role)
        sizes = torch.stack([step.mean(margin.abs(), weight), step.mean(scale, weight)])
        self.adapted.update(*(step.all_reduce(sizes) / step.draws.world_size))

    def measured(self, margin: Tensor) -> dict[str, Tensor]:
        return {"gradient_factor": gradient_factor(margin, self._beta(margin))}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        found = super().metrics(step)
        like = found["flow_dpo_margin"]
        found["flow_dpo_beta"] = torch.as_tensor(self._beta(like), dtype=like.dtype, device=like.device)
        if self.adapted:
            found["flow_dpo_beta_clamped"] = (self.adapted.value() != self.adapted.clamped()).to(like.dtype)
        return found

    def state_dict(self) -> dict[str, Any]:
        if self.adapted is None:
            return super().state_dict()
        own = {"average": self.adapted.average.clone(), "updates": self.adapted.updates.clone()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        if self.adapted is not None:
            self.adapted.average, self.adapted.updates = state["average"], state["updates"]

    def _beta(self, like: Tensor) -> float | Tensor:
        return sent(self.adapted.clamped(), like.device, like.dtype) if self.adapted else self.beta
