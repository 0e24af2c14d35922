"""Give networks a second time: the end of the interval whose average velocity they predict.

The embedding of the time becomes ``(1 - g) E_t(t) + g E_d(d)`` with ``d = r`` or ``t - r`` (arXiv 2605.13724).
``E_d`` starts as a copy of ``E_t`` and is kept beside the network, not in it, so that no adapter freezes it and no LoRA
file holds it. The input of the embedder at time ``d`` comes from a second, partial forward: the network runs at time
``d`` and is stopped at its embedder. No code of the model is copied.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flowhooks.probe.recorder import bound_arguments
from flowhooks.probe.runs import inputs_of
from flowhooks.probe.times import Time
from flowhooks.quantization.plain import is_quantized, plain_linear

R, T_MINUS_R = "r", "t-r"


@dataclass(frozen=True, kw_only=True, eq=False)
class Span:
    """Holds an interval of sigma, from ``start`` down to ``end``.

    Args:
        start, end: ``[B]``, or one number for all.
        shift: the scheduler's shift at this resolution.
    """

    start: Tensor | float
    end: Tensor | float
    shift: float = 1.0


class Interval:
    """Adds a second time to one network.

    Args:
        network: the network whose time embedding is blended inside :meth:`attached`.
        embedder: name of the module that maps a time's features to the embedding.
        times: times of the network's contract.
        gate: g in [0, 1].
        deltatime_type: ``r`` or ``t-r``. Under ``r`` an empty interval leaves a fresh network as it is, to the last
            bit.
        timestep_scale: unit of ``d`` in place of the network's own: its input is ``timestep_scale * d``.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        embedder: str,
        times: Sequence[Time],
        *,
        gate: float = 0.25,
        deltatime_type: str = R,
        timestep_scale: float | None = None,
    ):
        if not 0 <= gate <= 1:
            raise ValueError(f"`gate_value` must be in [0, 1], got {gate}")
        if deltatime_type not in (R, T_MINUS_R):
            raise ValueError(f"`deltatime_type` must be {R!r} or {T_MINUS_R!r}, got {deltatime_type!r}")
        self.network, self.name, self.gate, self.deltatime_type = network, embedder, gate, deltatime_type
        self.embedder = network.get_submodule(embedder)
        self.times = [
            time if timestep_scale is None else replace(time, scale=timestep_scale, offset=0.0)
            for time in times
            if not time.second
        ]
        copied = bare_copy(self.embedder)
        self.dtype = next(copied.parameters()).dtype
        self.delta_embedder = copied.float().requires_grad_(True)
        #: Returns the interval of a network call outside :meth:`between`.
        self.schedule: Callable[[Mapping[str, Any]], Span | None] = lambda arguments: None
        self._told: tuple[Span | None] | None = None
        self._on = True
        self._inputs: tuple[tuple, dict[str, Any]] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Blend the network's time embedding inside the block."""
        handles = (
            self.network.register_forward_pre_hook(self._before, with_kwargs=True),
            self.embedder.register_forward_hook(self._blend),
        )
        with ExitStack() as stack:
            for handle in handles:
                stack.callback(handle.remove)
            yield

    @contextmanager
    def between(self, span: Span | None) -> Iterator[None]:
        """Let calls of the network in the block average over ``span``; with None they have no second time."""
        before, self._told = self._told, (span,)
        try:
            yield
        finally:
            self._told = before

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switch the second time of the network off inside the block."""
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    def _before(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._inputs = None
        if not self._on:
            return
        arguments = bound_arguments(network, args, kwargs)
        span = self._told[0] if self._told is not None else self.schedule(arguments)
        if span is not None:
            (self._inputs,) = inputs_of(self.embedder, network, {**arguments, **self._second(arguments, span)})

    def _second(self, arguments: Mapping[str, Any], span: Span) -> dict[str, Any]:
        """Return the network's time arguments with d in place of t."""
        start, end = (torch.as_tensor(value) for value in (span.start, span.end))
        d = end if self.deltatime_type == R else start - end
        found = {}
        for time in self.times:
            given = arguments[time.name]
            value = time.of(d, span.shift)
            if not isinstance(given, Tensor):
                found[time.name] = type(given)(value)
                continue
            value = value.reshape((*value.shape, *[1] * (given.dim() - value.dim())))
            found[time.name] = value.to(given.device, given.dtype).expand_as(given)
        return found

    def _blend(self, embedder: nn.Module, args: tuple, output: Any) -> Any:
        if self._inputs is None:
            return None
        (inputs, named), self._inputs = self._inputs, None
        # In the network's own precision, so that a fresh copy computes what the embedder computes.
        weights = {name: p.to(self.dtype) for name, p in self.delta_embedder.named_parameters()}
        delta = functional_call(self.delta_embedder, weights, inputs, named)
        # lerp returns its first argument exactly where both are equal.
        return torch.lerp(output, delta.to(output.dtype), self.gate)


def bare_copy(module: nn.Module) -> nn.Module:
    """Return a copy with plain weights of its own, without what adapters and hooks added to the module."""
    module = getattr(module, "base_layer", module)
    if isinstance(module, nn.Linear) and is_quantized(module.weight):
        # No gradient reaches quantised numbers.
        return plain_linear(module)
    clone = copy.copy(module)
    attributes = vars(clone)
    attributes.pop("forward", None)
    attributes.update({name: OrderedDict() for name in attributes if name.startswith("_") and "_hooks" in name})
    attributes["_parameters"] = {
        name: None if p is None else nn.Parameter(p.detach().clone()) for name, p in module._parameters.items()
    }
    attributes["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    attributes["_modules"] = {name: None if m is None else bare_copy(m) for name, m in module._modules.items()}
    return clone
