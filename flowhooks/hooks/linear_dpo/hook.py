"""Linear-DPO: the errors of both sides, weighed by a utility that is linear in the margin (arXiv 2605.21123)::

    loss = mean_b[ stop_gradient(clamp(0.5 - 0.2 beta margin_b, eta, 1 - eta)) * (L_pol(w)_b - L_pol(l)_b) ]

Where the clamp does not bind, its gradient is that of Flow-DPO with the sigmoid replaced by a line, times ``2 / beta``.
"""

from __future__ import annotations

from torch import Tensor

from flowhooks.hooks.linear_dpo import LinearDPOSpec
from flowhooks.hooks.preference import PairPreference
from flowhooks.hooks.preference_spec import LOSE, WIN
from flowhooks.kernel.step import Step

#: Slope of the utility over ``beta * margin``.
SLOPE = 0.2


def linear_pull(margin: Tensor, beta: float, eta: float) -> Tensor:
    """``clamp(0.5 - 0.2 beta margin, eta, 1 - eta)`` of each pair, ``[B]``, without gradient; 0.5 at the start."""
    return (0.5 - SLOPE * beta * margin.detach()).clamp(eta, 1 - eta)


class LinearDPO(LinearDPOSpec, PairPreference):
    """Owns the reduction and the objective of a preference run."""

    health = "linear_dpo_implicit_accuracy"

    def pair_loss(self, step: Step, margin: Tensor) -> Tensor:
        pull = linear_pull(margin, self.beta, self.eta)
        if self.margin_cap is not None:
            pull = pull * (margin < self.margin_cap)
        return pull * (step.score(WIN) - step.score(LOSE))

    def pull(self, margin: Tensor) -> float:
        return 0.5

    def measured(self, margin: Tensor) -> dict[str, Tensor]:
        return {"gradient_factor": linear_pull(margin, self.beta, self.eta)}
