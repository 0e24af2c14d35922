"""Hold what a rollout went through, and name one of its states, to be visited again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowhooks.kernel.view import at_least_fp32
from flowhooks.sampling.skipping import resized
from flowhooks.sampling.steps import Sampler, Transition
from flowhooks.transfer import parked, picked, sent

if TYPE_CHECKING:
    from flowhooks.sampling.rollout import PipelineSampler

#: The fields of a rollout that hold tensors of its samples, by the index of a step.
STORED = ("states", "velocities", "scored")


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """Holds images that were sampled together, and their stored states.

    Args:
        sampler: the sampler that was used.
        prompts, seeds: prompts of the B samples, and seeds of the noise that they start from.
        states: index of a step -> ``[B, ...]`` the state it started from; the number of steps -> the last one.
        transitions: transition of every step.
        forms: for every step, the outputs of each call of the network, as tensors without data.
        velocities: index of a step -> ``[B, ...]`` the guided velocity of the step, where it was kept.
        scored: the same of the policy as a loss saw it then, where that was not the velocity of the step.
        images: pipeline argument -> references of all its samples, which are then of one prompt.
        apart: whether the pipeline was called once for each sample, and is again; ``forms`` are then those of one.
    """

    sampler: Sampler
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    states: Mapping[int, Tensor]
    transitions: tuple[Transition, ...]
    forms: tuple[tuple[Any, ...], ...]
    velocities: Mapping[int, Tensor] = field(default_factory=dict)
    scored: Mapping[int, Tensor] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)
    apart: bool = False

    @property
    def final(self) -> Tensor:
        """Return ``[B, ...]`` clean latents in the scheduler's sample space."""
        return self.states[len(self.transitions)]

    def keep_steps(self, indices: Sequence[int]) -> Rollout:
        """Return a copy without the states and velocities of other steps; the final state stays."""
        kept = {*indices, len(self.transitions)}
        return self.with_tensors({kind: {i: each[i] for i in each if i in kept} for kind, each in self.stored.items()})

    def parked(self) -> Rollout:
        """Return a copy with the stored states on the host, from where a visit brings them back."""
        return self.with_tensors(
            {kind: {index: parked(kept) for index, kept in each.items()} for kind, each in self.stored.items()}
        )

    @property
    def stored(self) -> dict[str, Mapping[int, Tensor]]:
        """Return everything ``[B, ...]`` that it holds: the name of a field -> index of a step -> tensor."""
        return {kind: getattr(self, kind) for kind in STORED}

    def with_tensors(self, stored: Mapping[str, Mapping[int, Tensor]]) -> Rollout:
        """Return a copy that holds these in place of its :attr:`stored`."""
        states, velocities, scored = (stored[kind] for kind in STORED)
        return replace(self, states=states, velocities=velocities, scored=scored)


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutState:
    """Names one state of a rollout, to be visited again.

    Args:
        player: the sampler that generated it.
        index: index of the step that starts at it.
        arguments: role -> arguments of the pipeline's call in place of the sampler's; other roles use the sampler's.
    """

    player: PipelineSampler
    rollout: Rollout
    index: int
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def velocity(self, role: str) -> Tensor:
        """Return ``[B, ...]`` of the network as it stands, guided with the arguments of ``role``."""
        return self.player.velocity(self, role)

    @property
    def transition(self) -> Transition:
        return self.rollout.transitions[self.index]

    @property
    def state(self) -> Tensor:
        """Return the state ``[B, ...]``."""
        return self.rollout.states[self.index]

    @property
    def after(self) -> Tensor:
        """Return ``[B, ...]``, the state to which the sampler went from here. Raises KeyError when it was not kept."""
        return self.rollout.states[self.index + 1]

    def log_density(self, velocity: Tensor) -> Tensor:
        """Return ``[B, ...]``, the log density of the step that the sampler took, under ``velocity`` at its start."""
        device = velocity.device
        return self.transition.log_density(sent(self.state, device), velocity, sent(self.after, device))

    def stepped_by(self, velocity: Tensor) -> RolloutState:
        """Return a copy whose step was taken, with the noise that the sampler drew, by ``velocity`` ``[B, ...]``.

        A loss with a training adapter scores other velocities than the sampler's, which had none: only so is the step a
        sample of what is scored. Where the sampler's velocity was not kept, the two are the same.
        """
        taken = self.rollout.velocities.get(self.index)
        if taken is None:
            return self
        state, after, before = (sent(each, velocity.device) for each in (self.state, self.after, taken))
        by = self.transition.mean(state, velocity.detach()) - self.transition.mean(state, before)
        states = {**self.rollout.states, self.index + 1: at_least_fp32(after) + by}
        return replace(self, rollout=replace(self.rollout, states=states))

    @property
    def before(self) -> Tensor:
        """Return ``[B, ...]``, the velocity at the state, as a loss saw it when the sampler was there. Raises KeyError
        when it was not kept."""
        scored = self.rollout.scored.get(self.index)
        return self.rollout.velocities[self.index] if scored is None else scored

    def with_leaf_state(self) -> tuple[RolloutState, Tensor]:
        """Return a copy of this visit whose state is a leaf tensor that requires a gradient, and that leaf.

        Raises:
            ValueError: at index 0, whose state the pipeline draws itself.
        """
        if not self.index:
            raise ValueError("the state that a rollout starts from is drawn by the pipeline and takes no gradient")
        leaf = sent(self.state, self.player.model.device).detach().requires_grad_()
        rollout = replace(self.rollout, states={**self.rollout.states, self.index: leaf})
        return replace(self, rollout=rollout), leaf

    def with_arguments(self, role: str, arguments: Mapping[str, Any]) -> RolloutState:
        """Return a copy that uses these pipeline arguments when ``role`` is evaluated."""
        return replace(self, arguments={**self.arguments, role: arguments})

    def take(self, rows: Sequence[int]) -> RolloutState:
        """Return a copy with these samples."""
        all_of = self.rollout
        sizes = len(all_of.seeds), len(rows)
        stored = {kind: {i: picked(each, rows) for i, each in of.items()} for kind, of in all_of.stored.items()}
        part = replace(
            all_of.with_tensors(stored),
            prompts=tuple(all_of.prompts[i] for i in rows),
            seeds=tuple(all_of.seeds[i] for i in rows),
            forms=all_of.forms
            if all_of.apart
            else tuple(tuple(resized(form, *sizes) for form in step) for step in all_of.forms),
        )
        return replace(self, rollout=part)


def joined(parts: Sequence[Rollout]) -> Rollout:
    """Return rollouts of single samples as one whose samples are visited one by one."""
    first = parts[0]
    states, velocities = (
        {index: torch.cat([getattr(part, kind)[index] for part in parts]) for index in getattr(first, kind)}
        for kind in ("states", "velocities")
    )
    prompts, seeds = ([value for part in parts for value in getattr(part, kind)] for kind in ("prompts", "seeds"))
    return replace(first, prompts=tuple(prompts), seeds=tuple(seeds), states=states, velocities=velocities, apart=True)
