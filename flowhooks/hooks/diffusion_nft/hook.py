"""DiffusionNFT: policy improvement on the forward process (arXiv 2509.16117).

With ``u = e - x0`` of a sample, ``r`` in [0, 1] how good it is, ``b`` the option beta::

    v+ = (1 - b) v_old + b v          v- = (1 + b) v_old - b v
    paper       r |v+ - u|^2 + (1 - r) |v- - u|^2
    released    5 / b (r E(v+) + (1 - r) E(v-)),     E(w) = mean x^2 / sg mean |x|,     x = s (u - w)
"""

from __future__ import annotations

from torch import Tensor

from flowhooks.hooks.diffusion_nft import DiffusionNFTSpec
from flowhooks.hooks.ends.hook import scored_batch
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW, POLICY
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import at_least_fp32

SMALL, FLOOR = 1e-4, 1e-5


def branches(policy: Tensor, old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Return the positive and the negative branch ``[B, ...]`` of two velocities."""
    by = beta * (policy - old)
    return old + by, old - by


def plain_error(branch: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Return the mean squared error of a velocity, ``[B]``; sigma does not count."""
    return (branch - target).square().flatten(1).mean(1)


def relative_error(branch: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Return the squared error of the clean sample over its own mean size, ``[B]``, which has no gradient.

    Args:
        sigma: ``[B]``.
    """
    error = (sigma.reshape(-1, *[1] * (branch.dim() - 1)) * (target - branch)).flatten(1)
    return error.square().mean(1) / error.detach().abs().mean(1).clamp(min=FLOOR)


def nft_loss(
    policy: Tensor, old: Tensor, target: Tensor, sigma: Tensor, goodness: Tensor, beta: float, form: str
) -> Tensor:
    """Return the loss ``[B]`` of samples.

    Args:
        policy, old, target: velocities ``[B, ...]``.
        sigma, goodness: ``[B]`` in [0, 1].
        form: ``released`` or ``paper``.
    """
    error, scale = (relative_error, 5 / beta) if form == "released" else (plain_error, 1.0)
    positive, negative = (error(branch, target, sigma) for branch in branches(policy, old, beta))
    return scale * (goodness * positive + (1 - goodness) * negative)


class DiffusionNFT(DiffusionNFTSpec, Hook):
    """Sets the objective of scored samples: the better a sample is than its group, the more the positive branch is
    pulled towards it, and the less the negative one."""

    def advantages(self, step: Step) -> Tensor:
        """Return ``[B]`` rewards less the mean of their group, over their spread, cut off at ``advantage_clip``."""
        groups = scored_batch(step).groups
        if self.spread == "group":
            spread = groups.std(1, correction=0, keepdim=True)
        else:
            spread = _deviation(step, groups.flatten())
        away = groups - groups.mean(1, keepdim=True)
        return (away / (spread + SMALL)).clamp(-self.advantage_clip, self.advantage_clip).flatten()

    def objective(self, step: Step) -> Tensor:
        view = step.views[MAIN_VIEW]
        policy, old = (at_least_fp32(step.predict(MAIN_VIEW, role)) for role in (POLICY, "old"))
        goodness = 0.5 + self.advantages(step) / (2 * self.advantage_clip)
        loss = nft_loss(policy, old, step.target(MAIN_VIEW), view.level, goodness, self.beta, self.form)
        return step.mean(loss, view.weight)

    def metrics(self, step: Step) -> dict[str, Tensor]:
        policy, old = (at_least_fp32(step.predict(MAIN_VIEW, role)).flatten(1) for role in (POLICY, "old"))
        target = step.target(MAIN_VIEW).flatten(1)
        clipped = self.advantages(step).abs() >= self.advantage_clip
        found = {
            "drift": (policy - old).square().mean(1).sqrt() / old.square().mean(1).sqrt(),
            "gain": (old - target).square().mean(1) - (policy - target).square().mean(1),
            "clipped_pct": 100.0 * clipped.to(policy.dtype),
        }
        return {f"diffusion_nft_{name}": step.mean(value) for name, value in found.items()}


def _deviation(step: Step, values: Tensor) -> Tensor:
    """Return the standard deviation of ``[B]`` values over the samples of all processes."""
    count = len(values) * step.draws.world_size
    mean = step.all_reduce(values.sum()) / count
    return (step.all_reduce((values - mean).square().sum()) / count).sqrt()
