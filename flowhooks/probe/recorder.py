"""Run a stock pipeline once and write down what passes between its loop, its transformer, its scheduler and its VAE."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.errors import ModelError
from flowhooks.sampling.splice import splice, untouched


class Enough(Exception):
    """Thrown out of a pipeline's call once what was wanted is recorded."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One call of ``scheduler.step``: velocity, sample, and the sigmas of its two ends."""

    velocity: Tensor
    sample: Tensor
    sigma: float
    next_sigma: float


@dataclass(kw_only=True)
class Recording:
    """What one run passed. ``calls[i]`` holds a transformer call's arguments by name, ``outputs[i]`` what it
    returned."""

    calls: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    steps: list[StepRecord] = field(default_factory=list)
    decoded: Tensor | None = None


@contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Leave no trace of a run on the pipeline or its scheduler, and show no progress bar."""
    with untouched(pipe, pipe.scheduler):
        pipe.set_progress_bar_config(disable=True)
        yield


def bound_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name."""
    arguments = dict(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments)
    arguments.pop("self")
    extra = arguments.pop("kwargs", {})
    return {**arguments, **extra}


@contextmanager
def recording_calls(transformer: nn.Module, seen: Recording, *, stop: bool = False) -> Iterator[None]:
    """Record every call of the transformer; with ``stop``, throw :class:`Enough` instead of running it."""

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.calls.append(_snapshot(bound_arguments(module, args, kwargs)))
        if stop:
            raise Enough

    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        seen.outputs.append(_snapshot(first_of(output)))

    with ExitStack() as stack:
        for handle in (
            transformer.register_forward_pre_hook(before, with_kwargs=True),
            transformer.register_forward_hook(after, with_kwargs=True),
        ):
            stack.callback(handle.remove)
        yield


@contextmanager
def recording_steps(
    scheduler: Any, seen: Recording, answer: Callable[[Tensor], Tensor] | None = None
) -> Iterator[None]:
    """Record every scheduler step. ``answer(sample)`` replaces the next sample, while the scheduler's own index moves
    on."""

    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        i = self.step_index
        sigmas = [float(self.sigmas[i]), float(self.sigmas[i + 1])]
        seen.steps.append(
            StepRecord(velocity=model_output.clone(), sample=sample.clone(), sigma=sigmas[0], next_sigma=sigmas[1])
        )
        result = super(type(self), self).step(model_output, timestep, sample, *args, **kwargs)
        return result if answer is None else (answer(sample),)

    if not hasattr(scheduler, "_init_step_index") or not hasattr(scheduler, "sigmas"):
        raise ModelError(
            f"{type(scheduler).__name__} keeps no sigmas and step index, so it is no flow-matching scheduler that "
            f"the probe can read; "
            "use a pipeline with FlowMatchEulerDiscreteScheduler"
        )
    with splice(scheduler, step=step):
        yield


@contextmanager
def recording_decode(vae: nn.Module, seen: Recording) -> Iterator[None]:
    """Record what the VAE would decode, then throw :class:`Enough`."""

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.decoded = z.clone()
        raise Enough

    with untouched(vae):
        vars(vae)["decode"] = decode
        yield


@contextmanager
def encoded_once(pipe: Any) -> Iterator[None]:
    """Run the text encoders on the first call only; later calls in the block get the same embeddings."""
    first: list[Any] = []
    encode = pipe.encode_prompt

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        if not first:
            first.append(encode(*args, **kwargs))
        return first[0]

    with untouched(pipe):
        pipe.encode_prompt = encode_prompt
        yield


@contextmanager
def skipping_transformer(transformer: nn.Module, output: Any) -> Iterator[None]:
    """Answer every call with ``output`` instead of computing it."""
    with untouched(transformer):
        vars(transformer)["forward"] = lambda *args, **kwargs: (output,)
        yield


@torch.no_grad()
def run(pipe: Any, **call: Any) -> Any:
    """Call the pipeline with a generator of its own; a run that was stopped on purpose returns None."""
    try:
        return pipe(**{"generator": torch.Generator().manual_seed(0), **call})
    except Enough:
        return None


def first_of(output: Any) -> Any:
    """The prediction in what a transformer returns, in any of Diffusers' three forms."""
    if isinstance(output, tuple):
        return output[0]
    return getattr(output, "sample", output)


def _snapshot(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _snapshot(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_snapshot(v) for v in value)
    return value
