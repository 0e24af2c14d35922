"""Moves the samples of a student of few steps towards the teacher's (DMD, arXiv 2311.18828; DMD2, 2405.14867): a flow
map's, the on-policy second stage of AnyFlow (arXiv 2605.13724), or those of a network as it is.

A teacher and a critic, which models the policy's own samples, both predict the clean sample of a noised copy; the
sample moves from the critic's prediction to the teacher's. The critic is trained beside it; no pairs of noise and image
are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.adapters.second import SecondAdapter, build_second
from flowhooks.hooks.asking import exact_velocity, seen_part, trained_velocity
from flowhooks.hooks.distribution_matching import FLOW_MAP_STUDENT, LEAST, DistributionMatchingSpec
from flowhooks.hooks.distribution_matching.dmd import (
    critic_error,
    direction,
    dmd_surrogate,
    flow_map_jump,
    jump_times,
    noising_times,
    renoised,
    with_gradients,
)
from flowhooks.hooks.experts import require_whole_path
from flowhooks.hooks.flow_maps import guided
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import at_least_fp32
from flowhooks.transfer import sent

TEACHER, CRITIC = "reference", "critic"
SCHEDULER, EULER = "scheduler", "euler"
#: Lifts gradients of a mean over a sample's elements out of what fp16 rounds to 0; a power of two changes no digit.
SCALE = 4096.0


class DistributionMatching(DistributionMatchingSpec, Hook):
    """Adds ``weight * dmd_generator_loss`` for the policy and ``dmd_critic_loss`` for the hook's own critic.

    The hook uses only the conditions of a batch. The teacher is the reference. The critic is a second adapter on the
    policy's layers. It is in checkpoints but not in exported files, and is the only adapter in its own passes.

    A flow map goes from noise to data in a random number of jumps ``x_r = x_t - (t - r) u(x_t, t, r)``. The critic
    judges samples of every number together, so train the flow map's own loss beside, which keeps each number right. The
    other students walk a fixed grid and stop at a random place of it, where the sample is ``x_t - t v(x_t, t)``: so
    each of their calls is trained, at states of their own making (DMD2, section 4.5).

    Raises:
        AdapterError: the policy is no adapter of PEFT's.
        ModelError: the network is one of two experts, and cannot go from noise to data alone.
    """

    health = "dmd_gap"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._critic: SecondAdapter | None = None
        self._measured: dict[str, Tensor] = {}
        self._last = torch.zeros(())
        self._steps = 0
        if self.student != FLOW_MAP_STUDENT:
            # A slot of the students whose penalties are the whole loss.
            self.objective = self._nothing

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        if not self.weight:
            yield
            return
        require_whole_path(self.type, session.model)
        model: Any = session.model
        if self.unprompted():
            model.encode_null_conditions()
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

    def updated(self) -> None:
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "measured": dict(self._measured), "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # A checkpoint of a version without `policy_every` holds none of them.
        self._steps, self._measured = int(state.get("steps", 0)), dict(state.get("measured", {}))
        self._last = state.get("last", self._last)

    def _nothing(self, step: Step) -> Tensor:
        return torch.zeros((), device=step.batch.clean.device)

    def penalty(self, step: Step) -> dict[str, Tensor]:
        if not self.weight:
            return {}
        due = self._steps % self.policy_every == 0
        with torch.set_grad_enabled(due and torch.is_grad_enabled()):
            sample, following = self._drawn(step) if self.student == FLOW_MAP_STUDENT else self._walked(step)
        if due:
            generator = self.weight * self._generator_loss(step, sample, following)
            self._last = generator.detach()
        else:
            # Without a gradient, so that what is logged does not jump where the policy has its turn.
            generator = self._last
        return {"dmd_generator_loss": generator, "dmd_critic_loss": self._critic_loss(step, sample.detach(), following)}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return self._measured

    def _drawn(self, step: Step) -> tuple[Tensor, float]:
        """``[B, ...]`` samples of a flow map from fresh noise, with the gradient of the last jump, and 0, where they
        are."""
        count, x = self._count(step), self._start(step)
        grid = sent(jump_times(count, self._shift(step, self.shift)), x.device)
        times, condition = [sigma.expand(len(x)) for sigma in grid], step.batch.condition
        for t, r in zip(times[:-2], times[1:-1], strict=True):
            x = flow_map_jump(x, exact_velocity(step, POLICY, x, t, condition, r_sigma=r), t - r)
        return flow_map_jump(x, trained_velocity(step, x, times[-2], condition, r_sigma=times[-1]), times[-2]), 0.0

    def _walked(self, step: Step) -> tuple[Tensor, float]:
        """``[B, ...]`` what a network predicts of the sample at a random place of the grid that it samples on, with the
        gradient of that call, and the sigma of the next place."""
        count, x = self._count(step), self._start(step)
        levels = jump_times(self.jumps, self._shift(step, self.shift))
        grid = sent(levels, x.device)
        times, condition = [sigma.expand(len(x)) for sigma in grid], step.batch.condition
        for place, (t, r) in enumerate(zip(times[: count - 1], times[1:count], strict=True)):
            velocity = exact_velocity(step, POLICY, x, t, condition)
            if self.student == EULER:
                x = flow_map_jump(x, velocity, t - r)
            else:
                noise = step.draws.normal_like(x, f"dmd_renoise_{place}")
                x = renoised(flow_map_jump(x, velocity, t), noise, r)
        last = times[count - 1]
        return flow_map_jump(x, trained_velocity(step, x, last, condition), last), float(levels[count].numpy())

    def _count(self, step: Step) -> int:
        return 1 + int(torch.randint(self.jumps, (), generator=step.draws.shared("dmd_jumps")).numpy())

    def _start(self, step: Step) -> Tensor:
        return step.draws.normal_like(at_least_fp32(step.batch.clean), "dmd_start")

    def _generator_loss(self, step: Step, sample: Tensor, following: float) -> Tensor:
        x, sigma, _ = self._noised(step, sample.detach(), "dmd_generator", following)
        condition, model = step.batch.condition, step.model
        real, fake = (exact_velocity(step, role, x, sigma, condition) for role in (TEACHER, CRITIC))
        if self.unprompted():
            null: Any = model.null_conditions(condition)  # type: ignore[attr-defined]
            real = guided(real, exact_velocity(step, TEACHER, x, sigma, null), self.teacher_guidance)
        real, fake = (flow_map_jump(x, velocity, sigma) for velocity in (real, fake))
        towards = direction(fake, real, sample.detach())
        self._measured = {
            "dmd_direction": towards.square().flatten(1).mean(1).sqrt().mean(),
            "dmd_gap": (real - fake).abs().mean(),
        }
        return step.mean(dmd_surrogate(sample, towards))

    def _critic_loss(self, step: Step, sample: Tensor, following: float) -> Tensor:
        assert self._critic is not None
        x, sigma, noise = self._noised(step, sample, "dmd_critic", following)
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

    def _noised(self, step: Step, sample: Tensor, purpose: str, following: float) -> tuple[Tensor, Tensor, Tensor]:
        """``x_s`` of the samples, ``s`` ``[B]``, and the noise; ``following`` is the sigma at which the student goes on
        from them."""
        low = min(max(following, LEAST), self.judged_to) if self.judged_from is None else self.judged_from
        draws = step.draws
        u = torch.rand(len(sample) * draws.world_size, generator=draws.shared(f"{purpose}_sigma"))
        shift = self._shift(step, self.shift if self.judged_shift is None else self.judged_shift)
        times = noising_times(draws.local_rows(u), shift, low, self.judged_to)
        sigma = sent(times, sample.device)
        noise = draws.normal_like(sample, f"{purpose}_noise")
        return renoised(sample, noise, sigma), sigma, noise

    def _shift(self, step: Step, given: float | str) -> float:
        return step.model.shift(step.batch.clean) if given == SCHEDULER else float(given)
