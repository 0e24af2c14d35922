"""Climbs a reward by its own gradient, carried back along the pipeline's ODE (deterministic adjoint matching, arXiv
2605.06583; the formulas are ours, see :mod:`flowhooks.hooks.adjoint_target.maths`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError, RewardError
from flowhooks.hooks.adjoint_target import AdjointTargetSpec, maths
from flowhooks.hooks.adjoint_target.maths import FULL, LOOKAHEAD
from flowhooks.hooks.asking import pullback, seen_part, visited_velocity
from flowhooks.hooks.decoding import Decoder
from flowhooks.hooks.judging import Judges
from flowhooks.hooks.on_policy_rollout.hook import RolloutSource, Visited, visit_of
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW, POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View
from flowhooks.numberless import holds
from flowhooks.rewards import references_of
from flowhooks.transfer import sent

REFERENCE = "reference"
QUADRATIC: Mapping[str, float] = {"2": 1.0}


class AdjointTarget(AdjointTargetSpec, Hook):
    """Sets the target of a visited state: the base's velocity, less the control that is best there.

    For states before those that the adjoint reaches, the target is the base's velocity itself.

    Raises:
        ModelError: on attaching, a rollout that is not ``ode`` or not visited from its end, or a pipeline without a
            VAE.
        RewardError: a reward that cannot be built, has no gradient, or gives NaN.
    """

    health = "adjoint_reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blocks = [dict(block) for block in self.rewards]
        self.powers = {float(power): float(weight) for power, weight in self.regularizer.items()}
        self._scale = None if self.reward_scale is None else torch.tensor(float(self.reward_scale))
        self._limit: Tensor | None = None
        self._forget()

    def _forget(self) -> None:
        self._rollout: Any = None
        #: What rewards that compare get of the rollout's samples; None until it was read.
        self._shown: Any = None
        self._costates: dict[int, Tensor] = {}
        self._bases: dict[int, Tensor] = {}
        self._weight: Tensor | None = None
        self._values: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        source: RolloutSource = session.source
        if not source.from_the_end:
            raise ModelError(
                "`adjoint_target` carries gradients back from the end of a rollout; set `sampler` to 'ode', and "
                "`last_steps` or `sigma_max`, in `on_policy_rollout`"
            )
        model: Any = session.model
        self._source = source
        self._capacity = session.batch_size * source.group_size
        self._decoder = Decoder(model, "`adjoint_target`")
        self._judges = Judges(self.blocks, model.device, source.group_size)
        for reward, weight in zip(self._judges.rewards, self._judges.weights, strict=True):
            if weight and not reward.differentiable:
                raise RewardError(
                    f"reward {reward.name!r} is not differentiable, and `adjoint_target` climbs gradients; take one "
                    "that is, or give it the weight 0 to only measure it"
                )
        self._unguided = unguided_arguments(model.contract, source.sampling.arguments)
        if self._unguided:
            source.player.prepare(source.prompt_list or (), source.sampling, self._unguided)
        with self._decoder.attached():
            try:
                yield
            finally:
                self._forget()

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        """Evaluates every role without guidance, and leaves out samples whose co-states are not finite."""
        main = views[MAIN_VIEW]
        visit = visit_of(main)
        if self._unguided:
            for role in step.session.roles:
                visit = visit.with_arguments(role, self._unguided)
        if visit.rollout is not self._rollout:
            self._solve(step, visit)
        reached = visit.index in self._costates
        return {
            **views,
            MAIN_VIEW: replace(main, state=Visited(visit=visit), weight=self._weight if reached else main.weight),
        }

    def target(self, step: Step, view: View) -> Tensor | None:
        if view.name != MAIN_VIEW:
            return None
        index = visit_of(view).index
        if index not in self._bases:
            self._bases[index] = visited_velocity(step, REFERENCE, visit_of(view))
        base = self._bases[index]
        return base - self._control(index) if index in self._costates else base

    def metrics(self, step: Step) -> dict[str, Tensor]:
        """``adjoint_control``, the best control, and ``adjoint_drift``, the policy's, as shares of the base's velocity;
        ``adjoint_early_drift`` where the adjoint does not reach."""
        visit = visit_of(step.views[MAIN_VIEW])
        policy, target = step.predict(MAIN_VIEW), step.target(MAIN_VIEW)
        base = self._bases[visit.index]
        nothing = torch.full((), float("nan"), device=base.device)
        drift = _share(policy - base, base)
        reached = visit.index in self._costates
        return {
            **self._values,
            "adjoint_control": _share(target - base, base) if reached else nothing,
            "adjoint_drift": drift if reached else nothing,
            "adjoint_early_drift": nothing if reached else drift,
        }

    def state_dict(self) -> dict[str, Any]:
        held = {"scale": self._scale, "limit": self._limit}
        return {name: value.detach() for name, value in held.items() if value is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._scale, self._limit = state.get("scale", self._scale), state.get("limit")

    @torch.no_grad()
    def _solve(self, step: Step, visit: Any) -> None:
        """Computes, once per rollout, the co-state after every step that the adjoint reaches, last one first."""
        self._forget()
        rollout = visit.rollout
        end = self._source.end_of(rollout)
        clean = sent(rollout.final, step.model.device)
        if self.adjoint == LOOKAHEAD:
            self._look_ahead(step, visit, end, clean)
        else:
            self._carry_back(step, visit, end, clean)
        self._rollout = rollout
        self._clip(step)

    def _carry_back(self, step: Step, visit: Any, end: Sequence[int], clean: Tensor) -> None:
        costate = self._seen(step, self._reward_gradient(step, clean, measured=True))
        for index in reversed(end):
            at = replace(visit, index=index)
            by = at.transition.end - at.transition.start
            # The first one met is the last step, whose co-state is the reward's gradient.
            last = index == end[-1]
            if index == end[0]:
                self._bases[index] = base = self._seen(step, visited_velocity(step, REFERENCE, at))
                self._costates[index] = self._scaled(step, costate, base) if last else costate
                return
            ours = self._own_velocity(step, at) if self.adjoint == FULL else None
            with pullback(step, REFERENCE, at) as (whole, pulled):
                base = self._seen(step, whole)
                if step.session.training_adapter is None:
                    # Else the base of the loss is another one, and is asked for there.
                    self._bases[index] = base
                costate = self._costates[index] = self._scaled(step, costate, base) if last else costate
                pressure = None if ours is None else maths.regularizer_gradient(base - ours, self.powers)
                through_base = pulled(costate if pressure is None else pressure)
            if pressure is None:
                costate = maths.lean(costate, by, through_base)
            else:
                with pullback(step, POLICY, at) as (_, pulled):
                    costate = maths.full(costate, by, pulled(costate - pressure), through_base)

    def _look_ahead(self, step: Step, visit: Any, end: Sequence[int], clean: Tensor) -> None:
        for index in reversed(end):
            at = replace(visit, index=index)
            last = index == end[-1]
            ahead = clean
            if not last:
                kept = at.rollout.states[index], at.rollout.velocities[index]
                state, velocity = (sent(each, clean.device).float() for each in kept)
                ahead = state - at.transition.start * velocity
            gradient = self._seen(step, self._reward_gradient(step, ahead, measured=last))
            if last:
                self._bases[index] = self._seen(step, visited_velocity(step, REFERENCE, at))
                gradient = self._scaled(step, gradient, self._bases[index])
            else:
                gradient = sent(self._scale, gradient.device) * gradient  # type: ignore[arg-type]
            self._costates[index] = maths.lookahead(gradient, at.transition.end, self.lookahead_power)

    def _own_velocity(self, step: Step, at: Any) -> Tensor:
        """Returns the policy's unguided velocity: taken from the rollout if that was unguided, otherwise computed
        again."""
        if self._unguided:
            return self._seen(step, visited_velocity(step, POLICY, at, as_sampled=True))
        return self._seen(step, sent(at.rollout.velocities[at.index], step.model.device).float())

    def _reward_gradient(self, step: Step, clean: Tensor, *, measured: bool) -> Tensor:
        """Returns the gradient ``[B, ...]`` of the weighted sum of rewards with respect to the latents."""
        batch = step.batch
        if self._shown is None:
            self._shown = references_of(self._judges.rewards, batch)
        shown = self._shown

        def judge(pictures: Tensor) -> Tensor:
            noises = None if self.smoothing is None else self._noises(step, pictures)
            total, each, gradient = self._judges.with_gradient(step, pictures, batch, shown, noises)
            if measured:
                named = {f"adjoint_reward_{name}": value.mean() for name, value in each.items()}
                self._values = {**self._values, "adjoint_reward": total.mean(), **named}
            return gradient

        return self._decoder.gradient(clean, judge, batch.condition)

    def _noises(self, step: Step, pictures: Tensor) -> Iterator[Tensor]:
        # Noise is drawn in the order of memory.
        like = pictures.contiguous()
        for copy in range(int(self.smoothing["samples"])):  # type: ignore[index]
            yield self.smoothing["sigma"] * step.draws.normal_like(like, f"smoothing/{copy}")  # type: ignore[index]

    def _scaled(self, step: Step, gradient: Tensor, base: Tensor) -> Tensor:
        """Multiplies by the reward's scale, which the first rollout sets over all processes."""
        if self._scale is None:
            fine = gradient.isfinite().flatten(1).all(1)
            sums = [each[fine].double().square().sum() for each in (gradient, base)]
            slope, speed = step.all_reduce(torch.stack(sums)).sqrt()
            count = step.all_reduce(fine.sum() * gradient[0].numel()).clamp(min=1).double().sqrt()
            if not holds(slope > 0, True):
                raise RewardError(
                    "the gradient of the rewards is zero or not finite in the latents of every image of the first "
                    "rollout, so `reward_scale` cannot be found; the VAE or the clamping of pixels to [0, 1] stops it"
                )
            self._scale = maths.reward_scale(slope / count, speed / count, self.powers, self.control_ratio).float()
        return sent(self._scale, gradient.device) * gradient

    def _clip(self, step: Step) -> None:
        """Scales large co-states down, a whole trajectory at once, and replaces those that are not finite by zeros."""
        stacked = torch.stack([maths.rms(costate) for costate in self._costates.values()])
        fine = stacked.isfinite().all(0)
        for index, costate in self._costates.items():
            rows = fine.reshape(-1, *[1] * (costate.dim() - 1))
            self._costates[index] = torch.where(rows, costate, torch.zeros_like(costate))
        sizes = torch.where(fine, stacked.square().mean(0).sqrt(), torch.zeros_like(stacked[0]))
        self._weight = fine.to(sizes.dtype)
        self._values = {
            **self._values,
            "adjoint_reward_scale": sent(self._scale, sizes.device),  # type: ignore[arg-type]
            "adjoint_dropped": (~fine).float().mean(),
        }
        if self.clip_quantile == 1:
            return
        everyone = self._of_all_processes(step, torch.where(fine, sizes, torch.full_like(sizes, float("nan"))))
        now = torch.nanquantile(everyone, self.clip_quantile)
        # Without a finite co-state anywhere the limit stays; infinite, it is none yet.
        old = torch.full_like(now, math.inf) if self._limit is None else sent(self._limit, now.device)
        moved = torch.where(old.isfinite(), self.clip_decay * old + (1 - self.clip_decay) * now, now)
        self._limit = torch.where(now.isfinite(), moved, old)
        factors = torch.where(self._limit.isfinite(), maths.clipped_at(sizes, self._limit), torch.ones_like(sizes))
        for index, costate in self._costates.items():
            self._costates[index] = costate * factors.reshape(-1, *[1] * (costate.dim() - 1))
        self._values["adjoint_clipped"] = (factors < 1).float().mean()

    def _of_all_processes(self, step: Step, sizes: Tensor) -> Tensor:
        """``[processes * capacity]``: the sizes ``[B]`` of every process, NaN where one has fewer than it may have."""
        places = torch.zeros(step.draws.world_size, self._capacity, dtype=sizes.dtype, device=sizes.device)
        places[step.draws.rank] = float("nan")
        places[step.draws.rank, : len(sizes)] = sizes
        return step.all_reduce(places).flatten()

    @staticmethod
    def _seen(step: Step, values: Tensor) -> Tensor:
        return seen_part(step, values, step.batch.condition)

    def _control(self, index: int) -> Tensor:
        return maths.optimal_control(self._costates[index], self.powers)


def unguided_arguments(contract: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns pipeline arguments that switch classifier-free guidance off where these switch it on; empty where they do
    not. A guidance scale that the network takes as input stays."""
    embedded = {"guidance_scale"} if "embedded" in contract.guidance else set()
    off = {name: value for name, value in contract.call.items() if name not in embedded}
    return off if any(arguments.get(name, value) != value for name, value in off.items()) else {}


def _share(difference: Tensor, base: Tensor) -> Tensor:
    return (maths.rms(difference) / maths.rms(base).clamp(min=1e-6)).mean()
