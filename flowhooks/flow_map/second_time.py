"""Tell a network the second time of a flow map: the end of the step, blended into the embedding of its start."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flowhooks.flow_map.scheduler import Span
from flowhooks.flow_map.step_time import FlowMapError, StepTime, leaves, plain

R, T_MINUS_R = "r", "t-r"
#: Most by which a pipeline rounds a time, in units of sigma.
ROUNDED = 2e-3
REMEDY = "set `pipe.scheduler = FlowMapScheduler.from_scheduler(pipe.scheduler)`"


@dataclass(frozen=True, kw_only=True)
class TimeUnit:
    """Describes one argument of a network that holds a time: ``scale * u + offset``, in ``dtype``.

    Args:
        name: name of the argument.
        unshifted: whether ``u`` is sigma before the scheduler's shift (see :func:`unshift`); else it is sigma.
    """

    name: str
    scale: float
    offset: float
    dtype: torch.dtype
    unshifted: bool = False

    def of(self, sigma: Tensor, shift: float = 1.0) -> Tensor:
        """Map ``[B]`` sigma in [0, 1] to ``[B]`` time in the network's unit; ``shift`` is that of the resolution.

        Sigma in [-1, 0) continues beyond the data in the same unit; the shift, which would have a pole there, is that
        of ``|sigma|``.
        """
        level = sigma.float()
        if self.unshifted:
            level = unshift(level.abs(), shift).copysign(level)
        return (self.scale * level + self.offset).to(self.dtype)


def unshift(sigma: Any, shift: float) -> Any:
    """Return the ``u`` that the shift ``sigma = a u / (1 + (a - 1) u)`` (arXiv 2403.03206, eq. 23) maps to
    ``sigma``."""
    return sigma / (shift - (shift - 1) * sigma)


class SecondTime:
    """Blends ``(1 - g) E_t(t) + g E_d(d)`` in a network's time embedder, with ``d = r`` or ``t - r``.

    The input of the embedder at time ``d`` comes from a second, partial forward: the network runs at time ``d`` and is
    stopped at its embedder. No code of the model is copied.

    Args:
        network: the network.
        embedder: name of the module that maps a time's features to the embedding.
        times: the network's arguments that hold a time.
        delta_embedder: ``E_d``, a module like the embedder.
        dtype: dtype in which the embedder computes.
        gate: g in [0, 1].
        deltatime_type: ``r`` or ``t-r``.
        timestep_scale: unit of ``d`` in place of the network's own.
    """

    def __init__(
        self,
        network: nn.Module,
        embedder: str,
        times: Sequence[TimeUnit],
        delta_embedder: nn.Module,
        dtype: torch.dtype,
        *,
        gate: float,
        deltatime_type: str,
        timestep_scale: float | None = None,
    ):
        self.network, self.name, self.times = network, embedder, tuple(times)
        self.embedder = network.get_submodule(embedder)
        self.delta_embedder, self.gate, self.deltatime_type = delta_embedder, gate, deltatime_type
        self.timestep_scale, self.dtype = timestep_scale, dtype
        #: Whether the network is called as if it had no second time, see :func:`silenced`.
        self.silent = False
        self._inputs: tuple[tuple, dict[str, Any]] | None = None

    def attach(self) -> Callable[[], None]:
        """Blend from now on. Returns a function that ends it."""
        stack = ExitStack()
        stack.callback(self.network.register_forward_pre_hook(self._before, with_kwargs=True).remove)
        stack.callback(self.embedder.register_forward_hook(self._blend).remove)
        return stack.close

    def asked(self, arguments: Mapping[str, Any]) -> Span | None:
        """Return the interval of a call of the network with these arguments; None for a call without second time.

        Raises:
            FlowMapError: nothing tells where the step ends.
        """
        scheduler, index = self._place(arguments)
        span = scheduler.tell(index)
        self._require_time(arguments, span)
        return span

    def _place(self, arguments: Mapping[str, Any]) -> tuple[Any, int]:
        """Return the scheduler that these arguments come from, and the index of its step. Raises FlowMapError."""
        given = self._given(arguments)
        if given is None or given.step is None:
            raise FlowMapError(
                f"{type(self.network).__name__} is a flow map, and the time that it was given comes from no "
                f"FlowMapScheduler, so nothing tells it where the step ends; {REMEDY} on the pipeline that runs it"
            )
        return given.source, given.step

    def _given(self, arguments: Mapping[str, Any]) -> StepTime | None:
        times = (arguments.get(time.name) for time in self.times)
        return next((time for time in times if isinstance(time, StepTime)), None)

    def _require_time(self, arguments: Mapping[str, Any], span: Span) -> None:
        """Raise FlowMapError for a call at another time than that at which the step starts."""
        for time in self.times:
            expected = float(time.of(torch.as_tensor(span.start), span.shift))
            given = torch.as_tensor(plain(arguments[time.name])).detach()
            # Rounded to whole numbers by some schedulers.
            least = 1.0 if abs(time.scale) > 1 else 0.0
            size = torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
            near = max(least, abs(time.scale) * max(1e-3, 2 * size))
            # A network with a time for each token may have tokens without noise.
            wrong = (given.float() - expected).abs().min() > near
            if given.device.type not in ("cpu", "mps"):
                # Waits for no device.
                torch._assert_async(~wrong, "a flow map's network was called at another time than its step's")
            elif wrong:
                raise FlowMapError(
                    f"{type(self.network).__name__} was given the time {float(given.flatten()[0]):g} in `{time.name}` "
                    f"for a step that starts at {expected:g}; call it at the time at which the step starts"
                )

    @torch.compiler.disable
    def _before(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        self._inputs = None
        arguments = bound_arguments(network, args, kwargs)
        if self.silent:
            if (given := self._given(arguments)) is not None:
                given.source.pass_over()
            return plain(args), plain(kwargs)
        span = self.asked(arguments)
        if span is not None:
            arguments = plain(arguments)
            (self._inputs,) = inputs_of(self.embedder, network, {**arguments, **self._second(arguments, span)})
        return plain(args), plain(kwargs)

    def _second(self, arguments: Mapping[str, Any], span: Span) -> dict[str, Any]:
        """Return the network's time arguments with d in place of t."""
        start, end = (torch.as_tensor(value) for value in (span.start, span.end))
        d = end if self.deltatime_type == R else start - end
        found = {}
        for time in self.times:
            given = arguments[time.name]
            value = self._unit(time).of(d, span.shift)
            if not isinstance(given, Tensor):
                found[time.name] = type(given)(value)
                continue
            value, own = (
                each.reshape((*each.shape, *[1] * (given.dim() - each.dim()))).to(given.device, given.dtype)
                for each in (value, time.of(start, span.shift))
            )
            found[time.name] = value.expand_as(given)
            if given.dim() > 1:
                # The time of a given frame stays what it is.
                stays = (given - own).abs() > ROUNDED * abs(time.scale)
                found[time.name] = torch.where(stays, given, found[time.name])
        return found

    def _unit(self, time: TimeUnit) -> TimeUnit:
        if self.timestep_scale is None:
            return time
        return replace(time, scale=self.timestep_scale, offset=0.0)

    @torch.compiler.disable
    def _blend(self, embedder: nn.Module, args: tuple, output: Any) -> Any:
        if self._inputs is None:
            return None
        (inputs, named), self._inputs = self._inputs, None
        device = _first(output).device
        if next(self.delta_embedder.parameters()).device != device:
            self.delta_embedder.to(device)
        # In the network's own precision, so that a fresh copy computes what the embedder computes. It may have been
        # converted since.
        dtype = self.dtype
        plainly = device.type == "meta" or not torch.is_autocast_enabled(device.type)
        if plainly and inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
            dtype = inputs[0].dtype
        weights = {name: p.to(dtype) for name, p in self.delta_embedder.named_parameters()}
        delta = functional_call(self.delta_embedder, weights, inputs, named)
        return _lerped(output, delta, self.gate)


def _first(output: Any) -> Tensor:
    """Return the first tensor that an embedder returned; some return their embedding in several forms."""
    return _first(output[0]) if isinstance(output, tuple) else output


def _lerped(output: Any, delta: Any, gate: float) -> Any:
    if isinstance(output, tuple):
        return tuple(_lerped(own, other, gate) for own, other in zip(output, delta, strict=True))
    # lerp returns its first argument exactly where both are equal.
    return torch.lerp(output, delta.to(output.dtype), gate)


def has_second_time(network: nn.Module) -> bool:
    """Return whether a network has a second time that was added to it."""
    return bool(_second_times(network))


@contextmanager
def silenced(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Call networks inside the block as if no second time had been added to them, whatever scheduler they run under."""
    found = [each for network in networks for each in _second_times(network) if not each.silent]
    for each in found:
        each.silent = True
    try:
        yield
    finally:
        for each in found:
            each.silent = False


def _second_times(network: nn.Module) -> list[SecondTime]:
    hooks = [getattr(hook, "__self__", None) for hook in network._forward_pre_hooks.values()]
    return [owner for owner in hooks if isinstance(owner, SecondTime)]


def pass_over_steps_of(networks: Iterable[nn.Module]) -> Callable[[], None]:
    """Let schedulers take steps that these networks predict, which have no second time. Returns a function that ends
    it."""

    def before(network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        for value in leaves((args, kwargs)):
            if isinstance(value, StepTime):
                value.source.pass_over()

    stack = ExitStack()
    for network in networks:
        stack.callback(network.register_forward_pre_hook(before, with_kwargs=True).remove)
    return stack.close


def bound_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a forward call's arguments by name."""
    arguments = dict(signature_of(type(module).forward).bind(module, *args, **kwargs).arguments)
    arguments.pop("self")
    extra = arguments.pop("kwargs", {})
    return {**arguments, **extra}


signature_of = lru_cache(maxsize=256)(inspect.signature)


class StopForward(Exception):
    """Ends a forward of the network once what is needed is known."""


@torch.no_grad()
def inputs_of(module: nn.Module, network: nn.Module, arguments: Mapping[str, Any], calls: int = 1) -> list[Any]:
    """Return (args, kwargs) of each of the first ``calls`` calls of ``module`` in a forward of the network, which ends
    there.

    It calls ``network.forward`` itself, so that forward hooks on the network do not run.
    """
    inputs: list[tuple[tuple, dict[str, Any]]] = []

    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs.append((args, kwargs))
        if len(inputs) == calls:
            raise StopForward

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    # FSDP2 gathers what is beside the blocks in a hook, too, which may be what calls here.
    parted = any(hasattr(weight, "full_tensor") for weight in module.parameters())
    sharding: Any = network if parted and hasattr(network, "unshard") else None
    try:
        if sharding is not None:
            sharding.unshard()
        with suppress(StopForward):
            network.forward(**arguments)
    finally:
        if sharding is not None:
            sharding.reshard()
        handle.remove()
    return inputs
