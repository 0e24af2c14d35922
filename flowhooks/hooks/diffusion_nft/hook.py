"""DiffusionNFT: policy improvement on the forward process (arXiv 2509.16117).

With ``u = e - x0`` of a sample, ``r`` in [0, 1] how good it is, ``b`` the option beta::

    v+ = (1 - b) v_old + b v          v- = (1 + b) v_old - b v
    paper       r |v+ - u|^2 + (1 - r) |v- - u|^2
    released    5 / b (r E(v+) + (1 - r) E(v-)),     E(w) = mean x^2 / sg mean |x|,     x = s (u - w)
"""

from __future__ import annotations

from torch import Tensor

from flowhooks.hooks.diffusion_nft import DiffusionNFTSpec
from flowhooks.hooks.scored import OLD, ScoredObjective, relative_error, velocity_error
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View


def branches(policy: Tensor, old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative branch ``[B, ...]`` of two velocities."""
    by = beta * (policy - old)
    return old + by, old - by


def nft_loss(
    policy: Tensor, old: Tensor, target: Tensor, sigma: Tensor, goodness: Tensor, beta: float, form: str
) -> Tensor:
    """Return the loss ``[B]`` of samples.

    Args:
        policy, old, target: velocities ``[B, ...]``.
        sigma, goodness: ``[B]`` in [0, 1].
        form: ``released`` or ``paper``.
    """
    both = branches(policy, old, beta)
    if form == "released":
        scale = 5 / beta
        positive, negative = (relative_error(branch, target, sigma) for branch in both)
    else:
        scale = 1.0
        positive, negative = (velocity_error(branch, target) for branch in both)
    return scale * (goodness * positive + (1 - goodness) * negative)


class DiffusionNFT(DiffusionNFTSpec, ScoredObjective):
    """Sets the objective of scored samples: the better a sample is than its group, the more the positive branch is
    pulled towards it, and the less the negative one."""

    def losses(self, step: Step, view: View) -> Tensor:
        policy, old = self.velocity(step), self.velocity(step, OLD)
        return nft_loss(policy, old, step.target(view.name), view.level, self.goodness(step), self.beta, self.form)
