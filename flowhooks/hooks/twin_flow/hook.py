"""TwinFlow's second branch (arXiv 2512.05150): at negative times one network learns the flow to its own samples, and
where that differs from the flow to data, the samples are wrong. Experimental.

There is no critic and no frozen teacher: policy, flow to data and flow to the policy's samples share one set of
    weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flowhooks.hooks.asking import exact_velocity, trained_velocity
from flowhooks.hooks.distribution_matching.dmd import critic_error, dmd_surrogate, flow_map_jump, noising_times
from flowhooks.hooks.experts import require_whole_path
from flowhooks.hooks.flow_maps import expand_as_batch
from flowhooks.hooks.twin_flow import TwinFlowSpec
from flowhooks.hooks.twin_flow_target.trajectories import branch_difference
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import at_least_fp32
from flowhooks.transfer import sent

SCHEDULER = "scheduler"


class TwinFlow(TwinFlowSpec, Hook):
    """Adds the losses of the negative branch and of one-step samples.

    A sample is one jump of the policy from noise, ``x = z - u(z, 1, 0)``. At sigma ``-s`` the network learns the
    velocity of the straight path to it, ``e - x``; the difference to its velocity at ``s`` in the same state corrects
    ``u``. A negative sigma continues the network's own unit of time: -600 where 0.6 is 600, and 1.6 where it is 0.4.
    The hook uses only the conditions of a batch.

    Raises:
        ModelError: the network is one of two experts, and cannot go from noise to data alone.
    """

    health = "twin_flow_gap"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._measured: dict[str, Tensor] = {}
        if not (self.adversarial_weight and self.rectification_weight):
            self.health = ""  # the gap is measured where it is closed

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        if self.adversarial_weight:
            require_whole_path(self.type, session.model)
        yield

    def penalty(self, step: Step) -> dict[str, Tensor]:
        if not self.adversarial_weight:
            return {}
        velocity, sample = self._drawn(step)
        losses = {"twin_flow_adversarial_loss": self.adversarial_weight * self._adversarial(step, sample)}
        if self.rectification_weight:
            rectified = self._rectification(step, velocity, sample)
            losses["twin_flow_rectification_loss"] = self.rectification_weight * rectified
        return losses

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return self._measured

    def _drawn(self, step: Step) -> tuple[Tensor, Tensor]:
        """``u(z, 1, 0)`` ``[B, ...]``, with gradient where samples are corrected, and the sample it gives, without."""
        noise = step.draws.normal_like(at_least_fp32(step.batch.clean), "twin_flow_start")
        ones, condition = noise.new_ones(len(noise)), step.batch.condition
        zeros = torch.zeros_like(ones)
        if self.rectification_weight:
            velocity = trained_velocity(step, noise, ones, condition, r_sigma=zeros)
        else:
            velocity = exact_velocity(step, POLICY, noise, ones, condition, r_sigma=zeros)
        return velocity, flow_map_jump(noise, velocity.detach(), ones)

    def _adversarial(self, step: Step, sample: Tensor) -> Tensor:
        x, sigma, noise = self._noised(step, sample, "twin_flow_fake")
        fake = trained_velocity(step, x, -sigma, step.batch.condition, r_sigma=-sigma)
        return step.mean(critic_error(fake, noise, sample))

    def _rectification(self, step: Step, velocity: Tensor, sample: Tensor) -> Tensor:
        x, sigma, _ = self._noised(step, sample, "twin_flow_twin")
        times, condition = torch.cat([sigma, -sigma]), step.batch.condition
        both = exact_velocity(step, POLICY, torch.cat([x, x]), times, condition.join([condition]), r_sigma=times)
        real, fake = both.chunk(2)
        self._measured = {"twin_flow_gap": (fake - real).abs().mean()}
        return step.mean(dmd_surrogate(velocity, branch_difference(fake, real, self.difference_clamp)))

    def _noised(self, step: Step, sample: Tensor, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
        """``x_s`` of the samples, ``s`` ``[B]``, and the noise."""
        draws = step.draws
        shift = step.model.shift(step.batch.clean) if self.shift == SCHEDULER else float(self.shift)
        u = torch.rand(len(sample) * draws.world_size, generator=draws.shared(f"{purpose}_sigma"))
        sigma = sent(noising_times(draws.local_rows(u), shift), sample.device, sample.dtype)
        noise = draws.normal_like(sample, f"{purpose}_noise")
        return sample + expand_as_batch(sigma, sample) * (noise - sample), sigma, noise
