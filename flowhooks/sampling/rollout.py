"""Run the pipeline's own loop twice: to generate images while recording states, and to visit a state again.

Guidance of every kind, packing and time shifts remain the pipeline's own. A visit calls the pipeline without its
``no_grad``: on the way to the state the network does not run, and at the state the velocity that the scheduler would
get is returned, with its graph, and the call ends. So a gradient costs the memory of one step, whatever the trajectory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor, nn

from flowhooks.arguments import TEXTS
from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import StopForward
from flowhooks.flow_map.step_time import StepTime, plain
from flowhooks.kernel.view import at_least_fp32
from flowhooks.probe.recorder import freed_once
from flowhooks.probe.runs import find_networks
from flowhooks.probe.values import tensors_in
from flowhooks.sampling.encoded import EncodedPrompts
from flowhooks.sampling.flow_map_steps import first_order
from flowhooks.sampling.images import EACH
from flowhooks.sampling.skipping import SkipNetwork, record_output_shapes, resized
from flowhooks.sampling.steps import ODE, Transition, draw_noise, step_state, transition, with_sigmas_on_host
from flowhooks.splice import restore_attributes, splice
from flowhooks.transfer import parked, picked, sent


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Says how images are sampled.

    Args:
        kind: ``ode``, ``sde`` or ``cps``; see :mod:`flowhooks.sampling.steps`.
        steps: number of scheduler steps.
        noise_level: a in the formulas of ``sde`` and ``cps``.
        window: index of the first stochastic step, and of the first step after them; the others are ``ode``. None: all
            but the last, whose density would have no width.
        arguments: arguments of the pipeline's call, such as ``guidance_scale`` and ``negative_prompt``.
    """

    kind: str = ODE
    steps: int = 10
    noise_level: float = 0.7
    window: tuple[int, int] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def step(self, index: int, start: float, end: float) -> Transition:
        first, last = self.window if self.window is not None else (0, self.steps)
        chance = self.kind != ODE and first <= index < last and end > 0
        return transition(self.kind if chance else ODE, start, end, self.noise_level)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """Holds images that were sampled together, and their stored states.

    Args:
        sampler: the sampler that was used.
        prompts, seeds: prompts and seeds of the B samples.
        states: index of a step -> ``[B, ...]`` the state it started from; the number of steps -> the last one.
        transitions: transition of every step.
        forms: for every step, the outputs of each call of the network, as tensors without data.
        velocities: index of a step -> ``[B, ...]`` the guided velocity of the step, where it was kept.
        images: pipeline argument -> references of all its samples, which are then of one prompt.
    """

    sampler: Sampler
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    states: Mapping[int, Tensor]
    transitions: tuple[Transition, ...]
    forms: tuple[tuple[Any, ...], ...]
    velocities: Mapping[int, Tensor] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> Tensor:
        """Return ``[B, ...]`` clean latents in the scheduler's sample space."""
        return self.states[len(self.transitions)]

    def keep_steps(self, indices: Sequence[int]) -> Rollout:
        """Return a copy without the states and velocities of other steps; the final state stays."""
        kept = {*indices, len(self.transitions)}
        states, velocities = ({i: each[i] for i in each if i in kept} for each in (self.states, self.velocities))
        return replace(self, states=states, velocities=velocities)

    def parked(self) -> Rollout:
        """Return a copy with the stored states on the host, from where a visit brings them back."""
        states, velocities = (
            {index: parked(kept) for index, kept in all_of.items()} for all_of in (self.states, self.velocities)
        )
        return replace(self, states=states, velocities=velocities)


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
        part = replace(
            all_of,
            prompts=tuple(all_of.prompts[i] for i in rows),
            seeds=tuple(all_of.seeds[i] for i in rows),
            states={index: picked(state, rows) for index, state in all_of.states.items()},
            velocities={index: picked(velocity, rows) for index, velocity in all_of.velocities.items()},
            forms=tuple(tuple(resized(form, *sizes) for form in step) for step in all_of.forms),
        )
        return replace(self, rollout=part)


class PipelineSampler:
    """Samples with a pipeline and visits the states again.

    Args:
        model: model of the pipeline; its trained network computes as it stands, roles and adapters included.
        encoded: prompts that need not be encoded again.
        size: ``height`` and ``width`` in pixels; default: those at which it was probed.
    """

    def __init__(self, model: Any, encoded: EncodedPrompts, size: Mapping[str, int] | None = None):
        self.model, self.encoded, self.size = model, encoded, dict(size or model.size)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        keep: Sequence[int],
        keep_velocities: Sequence[int] = (),
        images: Mapping[str, Any] | None = None,
    ) -> Rollout:
        """Generate one image for each prompt.

        Args:
            keep: indices of the states to keep; the last one is always kept.
            keep_velocities: indices of the steps whose velocity to keep.
            images: references by pipeline argument, of all prompts, which are then the same one.
        """
        states: dict[int, Tensor] = {}
        velocities: dict[int, Tensor] = {}
        transitions: list[Transition] = []
        forms: list[list[Any]] = []
        calls: list[Any] = []

        def advance(index: int, step: Transition, velocity: Tensor, state: Tensor) -> Tensor:
            if index in keep:
                states[index] = state.clone()
            if index in keep_velocities:
                velocities[index] = velocity.clone()
            noise = draw_noise(state, list(seeds), index) if step.deviation else None
            after = step_state(step, state, velocity, noise)
            transitions.append(step)
            forms.append(list(calls))
            calls.clear()
            if index + 1 == sampler.steps:
                states[sampler.steps] = after.clone()
            return after

        with self._playing(sampler, advance) as pipe, record_output_shapes(find_networks(pipe), calls):
            self._call(pipe, prompts, seeds, sampler, {}, images or {})
        if len(transitions) != sampler.steps:
            raise ModelError(
                f"{type(pipe).__name__} took {len(transitions)} scheduler steps when {sampler.steps} were requested"
            )
        return Rollout(
            sampler=sampler,
            prompts=tuple(prompts),
            seeds=tuple(seeds),
            states=states,
            transitions=tuple(transitions),
            forms=tuple(map(tuple, forms)),
            velocities=velocities,
            images=images or {},
        )

    def velocity(self, visit: RolloutState, role: str) -> Tensor:
        """Return ``[B, ...]`` velocity ``e - x0`` at a state, guided with the arguments of ``role``, with gradient if
        gradients are enabled."""
        rollout, found = visit.rollout, []
        sleep = SkipNetwork(rollout.forms, visit.index)

        def advance(index: int, step: Transition, velocity: Tensor, state: Tensor) -> Tensor:
            if index == visit.index:
                found.append(velocity)
                raise StopForward
            sleep.go_on()
            return sent(visit.state, state.device) if index + 1 == visit.index else state

        with self._playing(rollout.sampler, advance) as pipe, sleep.of(find_networks(pipe)):
            try:
                more = visit.arguments.get(role, {})
                self._call(pipe, rollout.prompts, rollout.seeds, rollout.sampler, more, rollout.images)
            except StopForward:
                pipe.maybe_free_model_hooks()
        # Removed from the list: the scheduler's spliced class, which a reference cycle keeps alive, holds the list.
        return found.pop()

    def prepare(
        self, prompts: Sequence[str], sampler: Sampler, more: Mapping[str, Any] | None = None
    ) -> dict[str, tuple[Any, ...]]:
        """Encode each prompt once, as the sampler's calls need it with the arguments ``more``; nothing is sampled.
        Returns the :meth:`shapes` of the prompts that were encoded here, and not found on disk."""
        model = self.model
        call = {**model.contract.call, **sampler.arguments, **(more or {})}
        about = {"call": call, **({"size": self.size} if model.contract.joint else {})}
        found: dict[str, tuple[Any, ...]] = {}
        distinct: dict[tuple[Any, ...], tuple[Any, ...]] = {}

        def ask(prompt: str) -> None:
            shapes = self.shapes(prompt, sampler, more)
            found[prompt] = distinct.setdefault(shapes, shapes)

        with freed_once(model.pipe):
            self.encoded.prepare(prompts, about, ask)
        return found

    def shapes(self, prompt: str, sampler: Sampler, more: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """Return the shapes of the network's arguments for a prompt, which is encoded by this; prompts of equal shapes
        may be sampled together."""
        seen: list[tuple[Any, ...]] = []

        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen.append(tuple(tuple(t.shape) for t in tensors_in([*args, *kwargs.values()])))
            raise StopForward

        with ExitStack() as stack:
            pipe = stack.enter_context(self._playing(sampler, _never))
            for network in find_networks(pipe).values():
                stack.callback(network.register_forward_pre_hook(before, with_kwargs=True).remove)
            try:
                with torch.no_grad():
                    self._call(pipe, [prompt], [0], sampler, more or {}, {})
            except StopForward:
                pipe.maybe_free_model_hooks()
        return seen[0]

    def _call(
        self,
        pipe: Any,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        more: Mapping[str, Any],
        images: Mapping[str, Any],
    ) -> None:
        """Call the pipeline. With references, all prompts are the same one, to which they belong."""
        several: dict[str, Any] = {}
        known = inspect.signature(type(pipe).__call__).parameters
        if images and len(prompts) > 1:
            several = {next(name for name in EACH if name in known): len(prompts)}
        elif len(prompts) > 1:
            # A text that each prompt has beside it is a list where the prompts are.
            texts = {name: self.model.arguments.get(name, known[name].default) for name in TEXTS if name in known}
            listed = {name: text for name, text in texts.items() if isinstance(known[name].default, str)}
            several = {name: [text] * len(prompts) for name, text in listed.items() if isinstance(text, str)}
        call = self.model.call(
            **self.model.size_arguments(**self.size),
            **several,
            prompt=prompts[0] if len(prompts) == 1 or images else list(prompts),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            num_inference_steps=sampler.steps,
            output_type="latent",
            **{**sampler.arguments, **more, **images},
        )
        # Without the pipeline's own `no_grad`: the caller decides whether there is a gradient.
        method = getattr(type(pipe).__call__, "__wrapped__", type(pipe).__call__)
        # An embedding that depends on the images too must not be taken for that of another sample.
        entangled = self.model.contract.entangled
        with nullcontext() if entangled else self.encoded.used(prompts):
            method(pipe, **call)

    @contextmanager
    def _playing(self, sampler: Sampler, advance: Callable[[int, Transition, Tensor, Tensor], Tensor]) -> Iterator[Any]:
        """Yield the pipeline with ``advance(index, step, velocity, state)`` in place of its scheduler's step."""
        pipe = self.model.pipe

        def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.step_index is None:
                place = _place(self.timesteps, timestep)
                if place is None:
                    self._init_step_index(timestep)
                else:
                    self._step_index = place
            model_output, sample = plain(model_output), plain(sample)
            index = int(self.step_index)
            start, end = (float(self.sigmas[index + k]) for k in (0, 1))
            if self.config.get("invert_sigmas"):
                start, end, model_output = 1 - start, 1 - end, -model_output
            after = advance(index, sampler.step(index, start, end), model_output, sample)
            self._step_index += 1
            whole = kwargs.get("return_dict", True)
            return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=after) if whole else (after,)

        with ExitStack() as stack:
            modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
            stack.enter_context(restore_attributes(pipe, pipe.scheduler, *modules))
            stack.enter_context(first_order(pipe, self.model.interval))
            pipe.set_progress_bar_config(disable=True)
            set_timesteps = with_sigmas_on_host(type(pipe.scheduler).set_timesteps)
            stack.enter_context(splice(pipe.scheduler, step=step, set_timesteps=set_timesteps))
            yield pipe


def _place(steps: Tensor, timestep: Any) -> int | None:
    """Return the place of a step that was taken out of ``steps`` by its number, without reading either; None for one
    that was made otherwise."""
    if isinstance(timestep, StepTime):
        return timestep.step
    taken = isinstance(timestep, Tensor) and timestep.numel() == 1 and timestep._base is steps
    return timestep.storage_offset() - steps.storage_offset() if taken else None


def _never(index: int, step: Transition, velocity: Tensor, state: Tensor) -> Tensor:
    raise ModelError("the pipeline stepped without calling its network")
