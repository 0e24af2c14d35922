"""What objectives on scored samples share: advantages within a group, errors of a sample as one number, metrics.

With ``R`` the reward of a sample, the mean over its group, the deviation of the batch or of the group, ``c`` the option
``advantage_clip``::

    A = clip((R - mean) / (deviation + 1e-4), -c, c)          r = 1/2 + A / 2c,  how good a sample is, from 0 to 1
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from flowhooks.hooks.ends.hook import scored_batch
from flowhooks.hooks.scored_spec import ScoredObjectiveSpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW, POLICY
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View, at_least_fp32
from flowhooks.rewards.advantages import batch_advantages, group_advantages

OLD = "old"
FLOOR = 1e-5


def velocity_error(velocity: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error ``[B]`` of velocities ``[B, ...]``."""
    return (velocity - target).square().flatten(1).mean(1)


def relative_error(velocity: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Return the squared error ``[B]`` of the clean sample over its own mean size, which has no gradient.

    Args:
        velocity, target: ``[B, ...]``.
        sigma: ``[B]``.
    """
    error = (sigma.reshape(-1, *[1] * (velocity.dim() - 1)) * (target - velocity)).flatten(1)
    return error.square().mean(1) / error.detach().abs().mean(1).clamp(min=FLOOR)


class ScoredObjective(ScoredObjectiveSpec, Hook, ABC):
    """Sets an objective of scored samples. A subclass has the loss of each sample."""

    @abstractmethod
    def losses(self, step: Step, view: View) -> Tensor:
        """Return the loss ``[B]`` of the samples of the main view."""

    def objective(self, step: Step) -> Tensor:
        view = step.views[MAIN_VIEW]
        return step.mean(self.losses(step, view), view.weight)

    def velocity(self, step: Step, role: str = POLICY) -> Tensor:
        """Return ``[B, ...]`` in fp32 that a role predicts on the samples."""
        return at_least_fp32(step.predict(MAIN_VIEW, role))

    def error_of(self, step: Step, role: str = POLICY) -> Tensor:
        """Return the mean squared error ``[B]`` of the velocity that a role predicts on the samples."""
        return velocity_error(self.velocity(step, role), step.target(MAIN_VIEW))

    def advantages(self, step: Step) -> Tensor:
        """Return ``[B]`` rewards less the mean of their group, over their spread, cut off at ``advantage_clip``."""
        groups = scored_batch(step).groups
        rewards, size = groups.flatten(), groups.shape[1]
        if self.spread == "group":
            return group_advantages(rewards, size, self.advantage_clip)
        return batch_advantages(rewards, size, self.advantage_clip, step.all_reduce)

    def goodness(self, step: Step) -> Tensor:
        """Return ``[B]`` how good samples are, from 0 to 1; 1/2 is as good as the group."""
        return 0.5 + self.advantages(step) / (2 * self.advantage_clip)

    def measured(self, step: Step, view: View) -> dict[str, Tensor]:
        """Return further metrics ``[B]`` of an objective, by name without that of the hook."""
        return {}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        policy, old = (self.velocity(step, role).flatten(1) for role in (POLICY, OLD))
        target = step.target(MAIN_VIEW).flatten(1)
        clipped = self.advantages(step).abs() >= self.advantage_clip
        found = {
            "drift": (policy - old).square().mean(1).sqrt() / old.square().mean(1).sqrt(),
            "gain": (old - target).square().mean(1) - (policy - target).square().mean(1),
            "clipped_pct": 100.0 * clipped.to(policy.dtype),
            **self.measured(step, step.views[MAIN_VIEW]),
        }
        return {f"{self.type}_{name}": step.mean(value) for name, value in found.items()}


def grouped(step: Step, values: Tensor) -> Tensor:
    """Return ``[B]`` values as ``[groups, group_size]``."""
    return values.unflatten(0, (-1, scored_batch(step).group_size))
