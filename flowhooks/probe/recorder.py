"""Run a stock pipeline once and record what passes between its loop, its transformer, its scheduler and its VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from flowhooks.errors import FlowhooksError, ModelError
from flowhooks.flow_map.scheduler import Telling
from flowhooks.flow_map.second_time import bound_arguments, signature_of
from flowhooks.probe.calls import call_to_make
from flowhooks.probe.exceptions import FIXED_ARGUMENTS, passed_over
from flowhooks.probe.failures import failed
from flowhooks.probe.kept_texts import encoded_once as encoded_once
from flowhooks.probe.kept_texts import known_texts
from flowhooks.probe.posterior import at_mode, posterior_mode
from flowhooks.probe.values import flat_arguments, map_tensors, tensors_in
from flowhooks.splice import restore_attributes, splice


class StopRun(Exception):
    """Ends a pipeline's call once what is needed is recorded."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Holds one call of ``scheduler.step``: velocity ``e - x0``, sample, and the sigmas of its two ends, 1 being
    noise."""

    velocity: Tensor
    sample: Tensor
    sigma: float
    next_sigma: float


@dataclass(kw_only=True)
class Recording:
    """Holds what one run passed.

    ``names[i]`` names the network of call ``i``, ``calls[i]`` holds its arguments by name (see
    :func:`~flowhooks.probe.values.flat_arguments`), ``outputs[i]`` what
    it returned. ``encoded`` is the mode of the VAE's posterior, ``decoded`` the latents to decode, with the other
    arguments in ``decode_args`` and ``decode_options``. ``shift`` is the scheduler's shift of sigma, static or that
    of the resolution. ``copies`` counts the steps of copies that the pipeline made of its scheduler.
    """

    names: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    encoded: Tensor | None = None
    decoded: Tensor | None = None
    decode_args: tuple[Any, ...] = ()
    decode_options: Mapping[str, Any] = field(default_factory=dict)
    shift: float = 1.0
    copies: int = 0


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block, and restore every module's mode afterwards."""
    before = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for m, training in before:
            m.training = training


def execution_device(module: nn.Module) -> torch.device:
    """Return the device on which a module computes: where accelerate's offload hook takes it, else where it is."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return next(module.parameters()).device if device is None else torch.device(device)


@contextmanager
def without_side_effects(pipe: Any, networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Leave no trace of a run on the pipeline, its scheduler or its guider; show no progress bar, apply no guidance or
    dropout."""
    guiders = guiders_of(pipe)
    with ExitStack() as stack:
        # The components too: at its end a run removes offload hooks and installs new ones.
        modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
        stack.enter_context(restore_attributes(pipe, pipe.scheduler, *guiders, *modules))
        stack.enter_context(evaluating(*networks.values()))
        pipe.set_progress_bar_config(disable=True)
        for name, unchanged in passed_over(pipe).items():
            setattr(pipe, name, unchanged)
        for guider in guiders:
            guider.disable()
        stack.enter_context(with_fixed_arguments(networks.values()))
        yield


@contextmanager
def with_fixed_arguments(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Give networks the arguments of :data:`flowhooks.probe.exceptions.FIXED_ARGUMENTS` in place of the pipeline's."""
    with ExitStack() as stack:
        for network in networks:
            taken = signature_of(type(network).forward).parameters
            fixed = {name: value for name, value in FIXED_ARGUMENTS.items() if name in taken}
            if fixed:
                override = partial(_overridden, fixed)
                stack.callback(network.register_forward_pre_hook(override, with_kwargs=True).remove)
        yield


def guiders_of(pipe: Any) -> list[Any]:
    """Return the components that apply guidance; there is one for each network."""
    return [part for name, part in pipe.components.items() if name.startswith("guider") and part is not None]


def _overridden(fixed: Mapping[str, Any], module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
    return args, {**kwargs, **fixed}


@contextmanager
def recording_calls(networks: Mapping[str, nn.Module], seen: Recording, *, stop: bool = False) -> Iterator[None]:
    """Record every call of the networks; with ``stop``, raise :class:`StopRun` instead of running one."""

    def before(name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.names.append(name)
        seen.calls.append(_snapshot(flat_arguments(bound_arguments(module, args, kwargs))))
        if stop:
            raise StopRun

    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        seen.outputs.append(_snapshot(output))

    with ExitStack() as stack:
        for name, network in networks.items():
            handles = (
                network.register_forward_pre_hook(partial(before, name), with_kwargs=True),
                network.register_forward_hook(after, with_kwargs=True),
            )
            for handle in handles:
                stack.callback(handle.remove)
        yield


@contextmanager
def recording_steps(
    scheduler: Any, seen: Recording, answer: Callable[[Tensor], Tensor] | None = None, *, limit: int | None = None
) -> Iterator[None]:
    """Record every scheduler step, and raise :class:`StopRun` after ``limit`` of them.

    ``answer(sample)`` replaces the next sample, while the scheduler's own index advances.
    """
    inverted = bool(scheduler.config.get("invert_sigmas"))
    if not scheduler.config.get("use_dynamic_shifting"):
        seen.shift = float(scheduler.config.get("shift", scheduler.config.get("flow_shift", 1.0)))

    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self is not scheduler:  # a copy that a pipeline makes, for sound beside images or for each frame
            seen.copies += 1
            return super(type(self), self).step(model_output, timestep, sample, *args, **kwargs)
        if self.step_index is None:
            _begin(self, timestep)
            self._init_step_index(timestep)
        predicted = self.config.get("prediction_type", "flow_prediction")
        if predicted != "flow_prediction":
            raise ModelError(
                f"{type(scheduler).__name__} is set up for a network that predicts {predicted!r}; flow matching needs "
                "`prediction_type` 'flow_prediction'"
            )
        start, end = (float(self.sigmas[self.step_index + k]) for k in (0, 1))
        if start > 1 + 1e-3:
            raise ModelError(
                f"{type(scheduler).__name__} steps from sigma {start:g}: its samples are x0 + sigma e, as in EDM, "
                "where flow matching has (1 - sigma) x0 + sigma e and sigma in [0, 1]"
            )
        velocity = model_output.clone()
        if inverted:
            start, end, velocity = 1 - start, 1 - end, -velocity
        seen.steps.append(StepRecord(velocity=velocity, sample=sample.clone(), sigma=start, next_sigma=end))
        if len(seen.steps) == limit:
            raise StopRun
        if isinstance(self, Telling):
            # Learning a pipeline asks for no second time.
            self.pass_over()
        result = super(type(self), self).step(model_output, timestep, sample, *args, **kwargs)
        if answer is None:
            return result
        return (answer(sample),) if isinstance(result, tuple) else type(result)(prev_sample=answer(sample))

    def time_shift(self: Any, mu: float, sigma: float, t: Any) -> Any:
        half = float(super(type(self), self).time_shift(mu, sigma, 0.5))
        seen.shift = half / (1 - half)
        return super(type(self), self).time_shift(mu, sigma, t)

    if not hasattr(scheduler, "_init_step_index") or not hasattr(scheduler, "sigmas"):
        raise ModelError(
            f"{type(scheduler).__name__} keeps no sigmas and step index, so it is no flow-matching scheduler that the "
            "probe can read; use a pipeline with FlowMatchEulerDiscreteScheduler"
        )
    methods: dict[str, Callable] = {"step": step}
    if hasattr(scheduler, "time_shift"):
        methods["time_shift"] = time_shift
    with splice(scheduler, **methods):
        yield


def _begin(scheduler: Any, timestep: Any) -> None:
    """Tell the scheduler that the first step begins a schedule whose rounded timesteps coincide: it would take the
    second of two equal ones, and step beyond its last sigma."""
    if scheduler.begin_index is None and float(timestep) == float(scheduler.timesteps[0]):
        scheduler.set_begin_index(0)


@contextmanager
def recording_decode(vae: nn.Module, seen: Recording) -> Iterator[None]:
    """Record the latents that the VAE would decode and its other arguments, then raise :class:`StopRun`."""

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.decoded = z.clone()
        seen.decode_args = args
        seen.decode_options = {k: v for k, v in kwargs.items() if k not in ("return_dict", "generator")}
        raise StopRun

    with restore_attributes(vae):
        vars(vae)["decode"] = decode
        yield


@contextmanager
def recording_encode(vae: nn.Module, seen: Recording) -> Iterator[None]:
    """Record the mode of the posterior that the VAE returns."""
    encode: Any = vae.encode

    def recorded(*args: Any, **kwargs: Any) -> Any:
        encoded = encode(*args, **kwargs)
        seen.encoded = posterior_mode(encoded)
        return encoded

    with restore_attributes(vae):
        vars(vae)["encode"] = recorded
        yield


@contextmanager
def remembering(networks: Mapping[str, nn.Module], known: dict[Any, Any], *, computing: bool) -> Iterator[None]:
    """Return from a call of a network what it returned to an earlier one of the same shapes.

    Args:
        known: outputs of the networks, by name and shapes; new ones are added.
        computing: whether a call of new shapes is computed; else it raises :class:`StopRun`.
    """

    def answered(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        key = name, tuple(tuple(t.shape) for t in tensors_in([*args, *kwargs.values()]))
        if key not in known and not computing:
            raise StopRun
        if key not in known:
            known[key] = _snapshot(forward(*args, **kwargs))
        return _snapshot(known[key])

    with restore_attributes(*networks.values()):
        for name, network in networks.items():
            # Some pipelines pass a network only what the signature of its forward names.
            vars(network)["forward"] = update_wrapper(partial(answered, name, network.forward), network.forward)
        yield


@contextmanager
def answering(networks: Mapping[str, nn.Module], answer: Callable[[], Any]) -> Iterator[None]:
    """Return ``answer()`` from every call of the networks instead of computing it; forward hooks still see the call."""
    with restore_attributes(*networks.values()):
        for network in networks.values():
            vars(network)["forward"] = update_wrapper(lambda *args, **kwargs: answer(), network.forward)
        yield


@torch.no_grad()
def run(pipe: Any, **call: Any) -> Any:
    """Call the pipeline with a generator of its own; a run that was stopped on purpose returns None.

    A stopped or failed run moves offloaded components off the accelerator, as the pipeline does at the end of a
    complete one. Images that the pipeline encodes are the mode of their posterior.

    Raises:
        PipelineFailed: the pipeline raised an exception.
    """
    call = call_to_make(pipe, call)
    generator = call.setdefault("generator", torch.Generator().manual_seed(0))
    try:
        with at_mode(getattr(pipe, "vae", None), generator), known_texts(pipe, call):
            return pipe(**call)
    except StopRun:
        pipe.maybe_free_model_hooks()
        return None
    except Exception as error:
        pipe.maybe_free_model_hooks()
        if isinstance(error, FlowhooksError):
            raise
        raise failed(pipe, error) from error


@contextmanager
def freed_once(pipe: Any) -> Iterator[None]:
    """Runs of the pipeline inside the block leave their components where they are; at its end they are freed together.

    Components that Diffusers itself offloads are freed after each run, as it is made for.
    """
    if getattr(pipe, "_all_hooks", None):
        yield
        return
    try:
        with restore_attributes(pipe):
            pipe.maybe_free_model_hooks = lambda: None
            yield
    finally:
        pipe.maybe_free_model_hooks()


def first_of(output: Any) -> Any:
    """Return the prediction in what a transformer returns, in any of Diffusers' forms."""
    if isinstance(output, (tuple, list)):
        return output[0]
    return output.sample if hasattr(output, "sample") else output


def with_first(output: Any, prediction: Any) -> Any:
    """Return ``output`` with its prediction replaced by another one."""
    if isinstance(output, (tuple, list)):
        return type(output)([prediction, *output[1:]])
    if hasattr(output, "sample"):
        return type(output)(**{**output, "sample": prediction})
    return prediction


def map_output(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Apply ``change`` to every tensor of what a network returned, in any of Diffusers' forms."""
    if isinstance(value, BaseOutput):
        return type(value)(**{k: map_output(v, change) for k, v in value.items()})
    return map_tensors(value, change)


def _snapshot(value: Any) -> Any:
    return map_output(value, lambda t: t.detach().clone())
