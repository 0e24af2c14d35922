"""MaPO: a margin without a reference (arXiv 2406.06424; published for predictions of noise, on errors of a flow it is
our transfer). With ``L`` the reduced error of the policy on a view::

    phi(L) = 0.5 L / expm1(0.5 L)                  margin = phi(L(w)) - phi(L(l))
    loss   = mean_b[ L(w)_b - margin_weight * log sigmoid(beta * margin_b) ]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flowhooks.hooks.mapo import MaPOSpec
from flowhooks.hooks.preference import Preference, plain_error
from flowhooks.hooks.preference_spec import LOSE, WIN
from flowhooks.kernel.step import Step


def likelihood(error: Tensor) -> Tensor:
    """``0.5 L / expm1(0.5 L)`` ``[B]`` of an error ``[B]`` >= 0: 1 where it is 0, falling to 0."""
    # Nearer to 0 the derivative is a difference of two large numbers.
    half = (error / 2).clamp(min=1e-4)
    # exp(half) of a large error is no number.
    return half * (-half).exp() / -(-half).expm1()


def mapo_loss(win: Tensor, lose: Tensor, beta: float, margin_weight: float) -> Tensor:
    """The loss ``[B]`` of pairs from the policy's errors ``[B]``; ``win + margin_weight ln 2`` where they are equal."""
    return win - margin_weight * F.logsigmoid(beta * (likelihood(win) - likelihood(lose)))


class MaPO(MaPOSpec, Preference):
    """Owns the reduction and the objective of a preference run that has no reference."""

    health = "mapo_implicit_accuracy"

    def objective(self, step: Step) -> Tensor:
        weight = step.views[WIN].weight
        loss = step.mean(self._losses(step), weight)
        if self.sft_loss_weight:
            loss = loss + self.sft_loss_weight * step.mean(plain_error(step), weight)
        return loss

    def metrics(self, step: Step) -> dict[str, Tensor]:
        """``mapo_implicit_accuracy`` is the share of pairs on whose preferred side the policy errs less."""
        weight = step.views[WIN].weight
        win, lose = step.score(WIN), step.score(LOSE)
        margin = likelihood(win) - likelihood(lose)
        each = {
            "loss": self._losses(step),
            "margin": margin,
            "policy_win_err": win,
            "policy_lose_err": lose,
            "negative_margin_pct": 100.0 * (margin < 0),
            "implicit_accuracy": 1.0 * (margin > 0),
            "gradient_factor": torch.sigmoid(-self.beta * margin),
        }
        found = {name: step.mean(value.to(margin.dtype), weight) for name, value in each.items()}
        if self.sft_loss_weight:
            found["sft_loss"] = step.mean(plain_error(step), weight)
        return self.named(step, found)

    def _losses(self, step: Step) -> Tensor:
        return mapo_loss(step.score(WIN), step.score(LOSE), self.beta, self.margin_weight)
