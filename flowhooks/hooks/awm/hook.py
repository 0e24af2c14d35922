"""Advantage weighted matching (arXiv 2509.25050): a policy gradient whose log likelihoods are flow-matching errors.

With ``L = mean |v - u|^2`` of a sample, ``u = e - x0``, ``A`` its advantage, ``c`` the clip range::

    rho = exp(W(L_old) - W(L))          loss = max(-A rho, -A clip(rho, 1 - c, 1 + c))
    W(L) = L,  s L,  s^2 L  or  s ((L + 1e-10)^p - 1e-10^p) / p
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowhooks.hooks.awm import AWMSpec
from flowhooks.hooks.scored import OLD, ScoredObjective
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View

#: Keeps the slope of a power finite at an error of 0.
FLOOR = 1e-10


def weighed(error: Tensor, sigma: Tensor, weighting: str, power: float) -> Tensor:
    """Return minus the log likelihood ``[B]`` that stands for errors ``[B]`` at sigmas ``[B]``."""
    if weighting == "power":
        return sigma * ((error + FLOOR) ** power - FLOOR**power) / power
    return error * sigma ** {"none": 0, "sigma": 1, "sigma_squared": 2}[weighting]


def awm_loss(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Return the loss ``[B]``.

    Args:
        ratio: ``[B]`` likelihood under the policy over that under the old model.
        advantage: ``[B]``.
    """
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range))


class AWM(AWMSpec, ScoredObjective):
    """Sets the objective of scored samples: the likelihood of those that are better than their group rises, and that of
    the others falls, until it has moved by the clip range."""

    def losses(self, step: Step, view: View) -> Tensor:
        advantage = self.advantages(step) * (self.advantage_max / self.advantage_clip)
        return awm_loss(self._ratio(step, view), advantage, self.clip_range)

    def measured(self, step: Step, view: View) -> dict[str, Tensor]:
        ratio = self._ratio(step, view)
        return {"ratio": ratio, "beyond_pct": 100.0 * ((ratio - 1).abs() > self.clip_range).to(ratio.dtype)}

    def _ratio(self, step: Step, view: View) -> Tensor:
        """Return ``[B]`` the likelihood under the policy over that under the old model."""
        policy, old = (
            weighed(self.error_of(step, role), view.level, self.weighting, self.power) for role in (POLICY, OLD)
        )
        return torch.exp(old - policy)
