"""Centred reward distillation (CRD, arXiv 2603.14128).

With ``L = mean |v - u|^2`` of a sample, ``u = e - x0``, ``r`` in [0, 1] how good it is, ``b`` the option beta, and sg
for what has no gradient::

    R = L_old - L          loss = 5 / b (b (R - sg mean of the group's R) - (r - mean of the group's r))^2
"""

from __future__ import annotations

from torch import Tensor

from flowhooks.hooks.crd import CRDSpec
from flowhooks.hooks.scored import OLD, ScoredObjective, grouped, relative_error
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View


def mismatch(gain: Tensor, goodness: Tensor, beta: float) -> Tensor:
    """Return what gains lack of goodness or have too much, of a sample against its group.

    Args:
        gain, goodness: ``[groups, group_size]``; the mean of the gains has no gradient.
    """
    centred = gain - gain.detach().mean(1, keepdim=True)
    return beta * centred - (goodness - goodness.mean(1, keepdim=True))


def crd_loss(gain: Tensor, goodness: Tensor, beta: float) -> Tensor:
    """Return the loss ``[groups, group_size]``, by gains and goodness of that shape."""
    return 5 / beta * mismatch(gain, goodness, beta).square()


class CRD(CRDSpec, ScoredObjective):
    """Sets the objective of scored samples: the gain of each over the old model is fitted to its reward."""

    def losses(self, step: Step, view: View) -> Tensor:
        return crd_loss(*self._gains(step, view), self.beta).flatten()

    def measured(self, step: Step, view: View) -> dict[str, Tensor]:
        return {"mismatch": mismatch(*self._gains(step, view), self.beta).abs().flatten()}

    def _gains(self, step: Step, view: View) -> tuple[Tensor, Tensor]:
        """Return ``[groups, group_size]`` gains over the old model, and goodness."""
        old, policy = (self._error(step, view, role) for role in (OLD, POLICY))
        return grouped(step, old - policy), grouped(step, self.goodness(step))

    def _error(self, step: Step, view: View, role: str) -> Tensor:
        if self.form == "velocity":
            return self.error_of(step, role)
        return relative_error(self.velocity(step, role), step.target(view.name), view.level)
