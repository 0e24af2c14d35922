"""What objectives of preferences share: the error of a sample as one number, advantages over a reference, their
metrics, and the ordinary loss on what was preferred.

With ``L`` the reduced error of a view, one noise and one sigma for both sides::

    win_adv = L_ref(w) - L_pol(w)          lose_adv = L_pol(l) - L_ref(l)          margin = win_adv + lose_adv
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.hooks.anchor_regularizer.hook import AnchorRegularizer
from flowhooks.hooks.detectors import Terms, detect, drifts, warn
from flowhooks.hooks.preference_spec import AUTO, LOSE, WIN, ComparedSpec, PairSpec, PreferenceSpec
from flowhooks.hooks.reference_model import reference_model
from flowhooks.hooks.self_test import SelfTest
from flowhooks.hooks.watch import Watch
from flowhooks.kernel.hook import Alarm, Hook
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View

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


class Preference(PreferenceSpec, Hook):
    """Owns the reduction, and adds the ordinary loss on the preferred side. A subclass has the objective."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._terms = self.terms()

    def terms(self) -> Terms:
        """Return what the advice of the detectors depends on."""
        return Terms(name=self.type, sft_loss_weight=self.sft_loss_weight)

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        anchors = [hook.weight for hook in session.assembly.hooks if isinstance(hook, AnchorRegularizer)]
        self._terms = replace(self._terms, anchor=max(anchors, default=0.0))
        yield

    def reduce(self, step: Step, view: View, error: Tensor) -> Tensor:
        return reduce_error(error, self.norm_type, view.mask)

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        return warn(metrics, self._terms)

    def named(self, step: Step, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return metrics under the name of the objective; NaN where no sample of the batch is compared, because all its
        masks are black."""
        weight = step.views[WIN].weight
        if weight is not None:
            # A mean over nothing: as 0, a gradient factor would read as saturated.
            compared = step.all_reduce(weight.sum()) > 0
            found = {name: torch.where(compared, value, math.nan) for name, value in found.items()}
        return {f"{self.type}_{name}": value for name, value in found.items()}


def win_penalty(win_adv: Tensor, weight: float | Tensor) -> Tensor:
    """``weight * max(0, -win_adv)`` ``[B]``: what a pair costs on whose preferred side the policy is the worse one."""
    # Where both err alike there is nothing to pull back; a clamp has a gradient there.
    return weight * torch.relu(-win_adv)


def plain_error(step: Step) -> Tensor:
    """Return the ordinary error ``[B]`` on the main view, unmasked."""
    return (step.predict(WIN) - step.target(WIN)).square().flatten(1).mean(1)


class Compared(ComparedSpec, Preference):
    """Compares the policy with a reference: has its role, checks it, and watches the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._watch = None if self.stop_rule is None else Watch(self.type, self.stop_rule)

    @property
    def first_loss(self) -> float | None:
        """The loss where policy and reference are the same; None where it is not one number."""
        return None

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        with ExitStack() as stack:
            self._model = stack.enter_context(reference_model(session, self.reference))
            self._test = SelfTest(
                name=self.title, reference=self._model, role=self.role, views=self.sides, start=self.first_loss
            )
            stack.enter_context(super().attached(session))
            if self.stop_when == AUTO and session.adapter is None:
                # A copy of the last good step would be one of the whole network, several times its size.
                self._watch = None
            yield

    def started(self, session: Session) -> None:
        self._model.started(session)

    @property
    def watches(self) -> bool:  # type: ignore[override]
        return self._watch is not None

    def check_reference(self, step: Step, margin: Tensor, losses: Tensor) -> None:
        """Test, on the first step, that the reference is what it should be.

        Args:
            margin: ``[N]`` what is 0 where policy and reference are the same.
            losses: ``[N]``.
        """
        if step.training and step.draws.micro_step == 0 and not margin.is_meta:
            self._test.check(step, margin.detach(), losses.detach())

    def alarm(self, metrics: Mapping[str, float]) -> Alarm | None:
        return None if self._watch is None else self._watch.alarm(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {**self._model.state_dict(), **({} if self._watch is None else {"alarms": self._watch.count})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._model.load_state_dict(state)
        if self._watch is not None:
            self._watch.count = int(state.get("alarms", 0))


class PairPreference(PairSpec, Compared, ABC):
    """Owns the objective of a run on pairs. A subclass says what a pair costs, by :meth:`pair_loss`."""

    @abstractmethod
    def pair_loss(self, step: Step, margin: Tensor) -> Tensor:
        """Return the loss ``[B]`` of each pair with this margin ``[B]``; it is averaged last."""

    @abstractmethod
    def pull(self, margin: Tensor) -> float | Tensor:
        """Return the slope of the loss of a pair over its margin where that is 0, as a number above 0."""

    def capped(self, margin: Tensor) -> Tensor:
        """Return margins ``[B]`` that have no gradient above the cap."""
        return margin if self.margin_cap is None else margin.clamp(max=self.margin_cap)

    def follow(self, step: Step, margin: Tensor) -> None:
        """Adapt to the margins ``[B]`` of a training step, before its loss is computed."""

    def measured(self, margin: Tensor) -> dict[str, Tensor]:
        """Return what else is logged of each pair, ``[B]``."""
        return {}

    def decided(self, step: Step) -> Tensor | None:
        """Return the weights ``[B]`` of the pairs of which one side is preferred; None where all count alike."""
        return step.views[WIN].weight

    def objective(self, step: Step) -> Tensor:
        weight, decided = step.views[WIN].weight, self.decided(step)
        margin = self.margin(step)
        if step.training:
            self.follow(step, margin.detach())
        losses = self.pair_loss(step, margin)
        loss = step.mean(losses, weight)
        self.check_reference(step, margin, losses)
        if self.sft_loss_weight:
            loss = loss + self.sft_loss_weight * step.mean(plain_error(step), decided)
        if self.win_weight:
            loss = loss + step.mean(self._win_penalty(step, margin), decided)
        return loss

    def metrics(self, step: Step) -> dict[str, Tensor]:
        """Returns NaN where no pair of the batch is compared, because all its masks are black. All but the loss are
        means over pairs of which one side is preferred, NaN where there is none."""
        weight, decided = step.views[WIN].weight, self.decided(step)
        margin = self.margin(step)
        advantages = {
            "win_adv": step.score(WIN, self.role) - step.score(WIN),
            "lose_adv": step.score(LOSE) - step.score(LOSE, self.role),
        }
        each = {
            "margin": margin,
            **advantages,
            "policy_win_err": step.score(WIN),
            "policy_lose_err": step.score(LOSE),
            "ref_win_err": step.score(WIN, self.role),
            "ref_lose_err": step.score(LOSE, self.role),
            "negative_margin_pct": 100.0 * (margin < 0),
            "implicit_accuracy": 1.0 * (margin > 0),
            **self.measured(margin),
        }
        found = {"loss": step.mean(self.pair_loss(step, margin).to(margin.dtype), weight)}
        if self.margin_cap is not None:
            each["capped_pct"] = 100.0 * (margin >= self.margin_cap)
        if self.sft_loss_weight:
            each["sft_loss"] = plain_error(step)
        if self.win_weight:
            each["win_penalty"] = self._win_penalty(step, margin)
        means = {name: step.mean(value.to(margin.dtype), decided) for name, value in each.items()}
        if decided is not None and decided is not weight:
            some = step.all_reduce(decided.sum()) > 0
            means = {name: torch.where(some, value, math.nan) for name, value in means.items()}
        found |= means
        return self.named(step, {**found, **detect(step, decided, **advantages), **drifts(step, self.role, self.sides)})

    def margin(self, step: Step) -> Tensor:
        """Return by how much the policy tells the sides apart better than the reference, ``[B]``."""
        win_adv = step.score(WIN, self.role) - step.score(WIN)
        return win_adv + step.score(LOSE) - step.score(LOSE, self.role)

    def _win_penalty(self, step: Step, margin: Tensor) -> Tensor:
        return win_penalty(step.score(WIN, self.role) - step.score(WIN), self.win_weight * self.pull(margin.detach()))
