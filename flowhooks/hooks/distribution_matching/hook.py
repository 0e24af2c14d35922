"""Moves the samples of a flow map towards the teacher's: the on-policy second stage of AnyFlow (arXiv 2605.13724).
Experimental.

The policy generates a sample in a few jumps, ``x_r = x_t - (t - r) u(x_t, t, r)``. A teacher and a critic, which models
the policy's own samples, both predict the clean sample of a noised copy; the sample moves from the critic's prediction
to the teacher's (DMD, arXiv 2311.18828). The critic is trained beside it; no pairs of noise and image are needed (DMD2,
arXiv 2405.14867).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flowhooks.adapters.second import SecondAdapter, build_second
from flowhooks.hooks.asking import exact_velocity, seen_part, trained_velocity
from flowhooks.hooks.distribution_matching import DistributionMatchingSpec
from flowhooks.hooks.distribution_matching.dmd import (
    critic_error,
    direction,
    dmd_surrogate,
    flow_map_jump,
    jump_times,
    noising_times,
    with_gradients,
)
from flowhooks.hooks.experts import require_whole_path
from flowhooks.hooks.flow_maps import expand_as_batch
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import at_least_fp32
from flowhooks.transfer import sent

TEACHER, CRITIC = "reference", "critic"
SCHEDULER = "scheduler"
#: Lifts gradients of a mean over a sample's elements out of what fp16 rounds to 0; a power of two changes no digit.
SCALE = 4096.0


class DistributionMatching(DistributionMatchingSpec, Hook):
    """Adds ``weight * dmd_generator_loss`` for the policy and ``dmd_critic_loss`` for the hook's own critic.

    The hook uses only the conditions of a batch. The teacher is the reference. The critic is a second adapter on the
    policy's layers. It is in checkpoints but not in exported files, and is the only adapter in its own passes. It
    judges samples of every number of jumps together, so train the flow map's own loss beside, which keeps each number
    right.

    Raises:
        AdapterError: the policy is no adapter of PEFT's.
        ModelError: the network is one of two experts, and cannot go from noise to data alone.
    """

    health = "dmd_gap"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._critic: SecondAdapter | None = None
        self._measured: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        if not self.weight:
            yield
            return
        require_whole_path(self.type, session.model)
        alpha = self.critic_rank if self.critic_alpha is None else self.critic_alpha
        self._critic = critic = build_second(session.adapter, name=CRITIC, rank=self.critic_rank, alpha=alpha)

        @contextmanager
        def playing() -> Iterator[None]:
            with session.assembly.disabled(), critic.alone():
                yield

        try:
            with session.roles.registered(CRITIC, playing):
                yield
        finally:
            self._critic = None
            critic.detach()

    def modules(self) -> dict[str, nn.Module]:
        return {} if self._critic is None else {CRITIC: self._critic.as_module()}

    def exported(self) -> dict[str, nn.Module]:
        return {}

    def penalty(self, step: Step) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        sample = self._drawn(step)
        generator = self.weight * self._generator_loss(step, sample)
        return {"dmd_generator_loss": generator, "dmd_critic_loss": self._critic_loss(step, sample.detach())}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return self._measured

    def _drawn(self, step: Step) -> Tensor:
        """``[B, ...]`` the policy's samples from fresh noise, with the gradient of the last jump."""
        count = 1 + int(torch.randint(self.jumps, (), generator=step.draws.shared("dmd_jumps")).numpy())
        x = step.draws.normal_like(at_least_fp32(step.batch.clean), "dmd_start")
        grid = sent(jump_times(count, self._shift(step)), x.device)
        times, condition = [sigma.expand(len(x)) for sigma in grid], step.batch.condition
        for t, r in zip(times[:-2], times[1:-1], strict=True):
            x = flow_map_jump(x, exact_velocity(step, POLICY, x, t, condition, r_sigma=r), t - r)
        return flow_map_jump(x, trained_velocity(step, x, times[-2], condition, r_sigma=times[-1]), times[-2])

    def _generator_loss(self, step: Step, sample: Tensor) -> Tensor:
        x, sigma, _ = self._noised(step, sample.detach(), "dmd_generator")
        real, fake = (
            flow_map_jump(x, exact_velocity(step, role, x, sigma, step.batch.condition), sigma)
            for role in (TEACHER, CRITIC)
        )
        towards = direction(fake, real, sample.detach())
        self._measured = {
            "dmd_direction": towards.square().flatten(1).mean(1).sqrt().mean(),
            "dmd_gap": (real - fake).abs().mean(),
        }
        return step.mean(dmd_surrogate(sample, towards))

    def _critic_loss(self, step: Step, sample: Tensor) -> Tensor:
        assert self._critic is not None
        x, sigma, noise = self._noised(step, sample, "dmd_critic")
        parameters = self._critic.parameters()
        with step.playing(CRITIC, gradient=True) as model:
            condition = step.batch.condition
            velocity, noise, sample = (
                seen_part(step, each, condition) for each in (model.predict(x, sigma, condition), noise, sample)
            )
            loss = step.mean(critic_error(velocity, noise, sample))
            if not torch.is_grad_enabled():
                return loss
            # Here and not in the caller's backward: a checkpointed forward would run again without the critic. The
            # caller scales a loss for half precision, so this one is scaled too, and back in the parameters' fp32.
            scaled = torch.autograd.grad(SCALE * loss, parameters, allow_unused=True)
        gradients = [None if g is None else g / SCALE for g in scaled]
        # Autocast keeps casts of weights with their graph, which is used up.
        torch.clear_autocast_cache()
        return with_gradients(loss, gradients, parameters)

    def _noised(self, step: Step, sample: Tensor, purpose: str) -> tuple[Tensor, Tensor, Tensor]:
        """``x_s`` of the samples, ``s`` ``[B]``, and the noise."""
        draws = step.draws
        u = torch.rand(len(sample) * draws.world_size, generator=draws.shared(f"{purpose}_sigma"))
        sigma = sent(noising_times(draws.local_rows(u), self._shift(step)), sample.device)
        noise = draws.normal_like(sample, f"{purpose}_noise")
        return sample + expand_as_batch(sigma, sample) * (noise - sample), sigma, noise

    def _shift(self, step: Step) -> float:
        return step.model.shift(step.batch.clean) if self.shift == SCHEDULER else float(self.shift)
