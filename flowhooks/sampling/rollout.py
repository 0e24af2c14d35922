"""Run the pipeline's own loop twice: to generate images while recording states, and to visit a state again.

Guidance of every kind, packing and time shifts remain the pipeline's own. A visit calls the pipeline without its
``no_grad``: on the way to the state the network does not run, and at the state the velocity that the scheduler would
get is returned, with its graph, and the call ends. So a gradient costs the memory of one step, whatever the trajectory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor, nn

from flowhooks.arguments import OWN_TEXTS
from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import StopForward
from flowhooks.flow_map.step_time import StepTime, plain
from flowhooks.probe.calls import call_to_make
from flowhooks.probe.posterior import at_mode
from flowhooks.probe.recorder import freed_once, with_fixed_arguments
from flowhooks.probe.runs import find_networks
from flowhooks.probe.values import tensors_in
from flowhooks.sampling.encoded import EncodedPrompts
from flowhooks.sampling.flow_map_steps import first_order
from flowhooks.sampling.images import EACH
from flowhooks.sampling.prompts import Prompt
from flowhooks.sampling.skipping import SkipNetwork, record_output_shapes
from flowhooks.sampling.states import Rollout, RolloutState, joined
from flowhooks.sampling.steps import Sampler, Transition, draw_noise, step_state, with_sigmas_on_host
from flowhooks.splice import restore_attributes, splice
from flowhooks.transfer import sent

#: What a pipeline may raise that cannot make several samples with references in one call.
JOINING = (RuntimeError, ValueError, IndexError, TypeError)


class PipelineSampler:
    """Samples with a pipeline and visits the states again.

    Args:
        model: model of the pipeline; its trained network computes as it stands, roles and adapters included.
        encoded: prompts that need not be encoded again.
        size: ``height`` and ``width`` in pixels; default: those at which it was probed.
    """

    def __init__(self, model: Any, encoded: EncodedPrompts, size: Mapping[str, int] | None = None):
        self.model, self.encoded, self.size = model, encoded, dict(size or model.size)
        #: Whether the pipeline makes several samples of one prompt with references in one call, each as it is alone;
        #: None until it was tried.
        self._joins: bool | None = None

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampler: Sampler,
        keep: Sequence[int],
        keep_velocities: Sequence[int] = (),
        images: Mapping[str, Any] | None = None,
        noise_seeds: Sequence[int] | None = None,
    ) -> Rollout:
        """Generate one image for each prompt.

        Args:
            seeds: one for each; it gives the noise that the image starts from.
            keep: indices of the states to keep; the last one is always kept.
            keep_velocities: indices of the steps whose velocity to keep.
            images: references by pipeline argument, of all prompts, which are then the same one.
            noise_seeds: seeds of the noise of stochastic steps; None for ``seeds``.
        """
        own = list(seeds if noise_seeds is None else noise_seeds)
        if images and len(prompts) > 1 and not self._joins_samples(prompts[0], images):
            each = zip(prompts, seeds, own, strict=True)
            return joined([self.draw([p], [s], sampler, keep, keep_velocities, images, [n]) for p, s, n in each])
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
            noise = draw_noise(state, own, index) if step.deviation else None
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

    @torch.no_grad()
    def ends(
        self, prompts: Sequence[str], seeds: Sequence[int], sampler: Sampler, images: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Generate one image for each prompt by the pipeline's own scheduler, and return the final latents ``[B, ...]``
        in its sample space; nothing of the steps before is kept.

        Args:
            sampler: its steps and arguments count; the kind of step is the scheduler's.
            images: references by pipeline argument, of all prompts, which are then the same one.
        """
        if images and len(prompts) > 1 and not self._joins_samples(prompts[0], images):
            return torch.cat([self.ends([p], [s], sampler, images) for p, s in zip(prompts, seeds, strict=True)])
        latest: list[Tensor] = []
        with self._sampling(latest) as pipe:
            self._call(pipe, prompts, seeds, sampler, {}, images or {})
        if not latest:
            raise ModelError(f"{type(pipe).__name__} never stepped its scheduler, so it has no latents to end at")
        return latest.pop()

    def condition(self, prompt: Prompt) -> Any:
        """Return the condition of one sample of a prompt and its references, as in training on data."""
        with self.encoded.used([prompt.text]):
            return self.model.encode_conditions([prompt.text], [prompt.images])

    def prepare_conditions(self, prompts: Sequence[Prompt]) -> None:
        """Encode each prompt once, as :meth:`condition` needs it. A prompt with references is left to that."""
        named = {prompt.text: prompt for prompt in prompts if not prompt.images}
        about = {"condition": self.model.contract.call, **({"size": self.size} if self.model.contract.joint else {})}
        with freed_once(self.model.pipe):
            self.encoded.prepare(list(named), about, lambda text: self.condition(named[text]))

    def velocity(self, visit: RolloutState, role: str) -> Tensor:
        """Return ``[B, ...]`` velocity ``e - x0`` at a state, guided with the arguments of ``role``, with gradient if
        gradients are enabled."""
        rollout, found = visit.rollout, []
        if rollout.apart and len(rollout.seeds) > 1:
            return torch.cat([self.velocity(visit.take([i]), role) for i in range(len(rollout.seeds))])
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
        self, prompts: Sequence[Prompt], sampler: Sampler, more: Mapping[str, Any] | None = None
    ) -> dict[str, tuple[Any, ...]]:
        """Encode each prompt once, as the sampler's calls need it with the arguments ``more``; nothing is sampled. A
        prompt that is encoded together with its references is left to those calls. Returns the :meth:`shapes` of the
        prompts that were encoded here, and not found on disk."""
        model = self.model
        shown = {prompt.text: prompt.images for prompt in prompts if not (prompt.images and model.contract.entangled)}
        call = {**model.contract.call, **sampler.arguments, **(more or {})}
        about = {"call": call, **({"size": self.size} if model.contract.joint else {})}
        found: dict[str, tuple[Any, ...]] = {}
        distinct: dict[tuple[Any, ...], tuple[Any, ...]] = {}

        def ask(prompt: str) -> None:
            shapes = self.shapes(prompt, sampler, more, shown[prompt])
            found[prompt] = distinct.setdefault(shapes, shapes)

        with freed_once(model.pipe):
            self.encoded.prepare(list(shown), about, ask)
        return found

    def shapes(
        self,
        prompt: str,
        sampler: Sampler,
        more: Mapping[str, Any] | None = None,
        images: Mapping[str, Any] | None = None,
    ) -> tuple[Any, ...]:
        """Return the shapes of the network's arguments for a prompt with these references, which is encoded by this;
        prompts of equal shapes may be sampled together."""
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
                    self._call(pipe, [prompt], [0], sampler, more or {}, images or {})
            except StopForward:
                pipe.maybe_free_model_hooks()
        return seen[0]

    def _joins_samples(self, prompt: str, images: Mapping[str, Any]) -> bool:
        """Return whether the pipeline hands its network two samples of a prompt with these references as it does alone,
        without guidance. Some do not repeat an image for all of a prompt's samples."""
        if self._joins is None:
            alone = torch.cat([self._first_velocity([prompt], [seed], images) for seed in (0, 1)])
            try:
                both = self._first_velocity([prompt] * 2, [0, 1], images)
            except JOINING as error:
                self.model.pipe.maybe_free_model_hooks()
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._joins = False
            else:
                allowed = 1e-3 if both.dtype.itemsize == 4 else 0.05
                self._joins = both.shape == alone.shape and float((both - alone).abs().max()) <= allowed * float(
                    alone.abs().max()
                )
        return self._joins

    def _first_velocity(self, prompts: Sequence[str], seeds: Sequence[int], images: Mapping[str, Any]) -> Tensor:
        """Return ``[B, ...]`` velocity of the first step, without guidance; the run ends there."""
        found: list[Tensor] = []

        def advance(index: int, step: Transition, velocity: Tensor, state: Tensor) -> Tensor:
            found.append(velocity)
            raise StopForward

        with self._playing(Sampler(), advance) as pipe:
            try:
                with torch.no_grad():
                    self._call(pipe, prompts, seeds, Sampler(), {}, images)
            except StopForward:
                pipe.maybe_free_model_hooks()
        return found.pop()

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
            named = [name for name in EACH if name in known]
            if not named:
                raise ValueError("the pipeline makes one sample of a prompt in a call")
            several = {named[0]: len(prompts)}
        elif len(prompts) > 1:
            # A text that each prompt has beside it is a list where the prompts are.
            texts = {name: self.model.arguments.get(name, known[name].default) for name in OWN_TEXTS if name in known}
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
        # Some draw from the posterior of an image without a seed, and a visit would see another image.
        mode = at_mode(getattr(pipe, "vae", None), call["generator"])
        with mode, self.encoded.used(prompts):
            method(pipe, **call_to_make(pipe, call))

    @contextmanager
    def _sampling(self, latest: list[Tensor]) -> Iterator[Any]:
        """Yield the pipeline, whose scheduler leaves in ``latest`` what its latest step came to."""
        pipe = self.model.pipe
        with ExitStack() as stack:
            modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
            stack.enter_context(restore_attributes(pipe, pipe.scheduler, *modules))
            if self.model.interval is not None:
                stack.enter_context(first_order(pipe, self.model.interval))
            own_step, scheduler = type(pipe.scheduler).step, pipe.scheduler

            def step(self: Any, *args: Any, **kwargs: Any) -> Any:
                after = own_step(self, *args, **kwargs)
                if self is scheduler:  # and no copy, for the sound beside a video
                    latest[:] = [after[0]]
                return after

            pipe.set_progress_bar_config(disable=True)
            stack.enter_context(splice(scheduler, step=step))
            yield pipe

    @contextmanager
    def _playing(self, sampler: Sampler, advance: Callable[[int, Transition, Tensor, Tensor], Tensor]) -> Iterator[Any]:
        """Yield the pipeline with ``advance(index, step, velocity, state)`` in place of its scheduler's step."""
        pipe = self.model.pipe
        own_step = type(pipe.scheduler).step

        def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self is not pipe.scheduler:  # a copy that the pipeline made, for the sound beside a video
                return own_step(self, model_output, timestep, sample, *args, **kwargs)
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
            stack.enter_context(with_fixed_arguments(find_networks(pipe).values()))
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
