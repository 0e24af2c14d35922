"""Give networks a second time that can be trained: the end of the interval whose average velocity they predict.

``E_d``, which embeds it, starts as a copy of the time embedder and is kept beside the network, not in it, so that no
adapter freezes it and no LoRA file holds it. :class:`SecondTime` says how it is used.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from flowhooks.errors import ModelError
from flowhooks.flow_map.scheduler import Span, Telling
from flowhooks.flow_map.second_time import T_MINUS_R, R, SecondTime
from flowhooks.flow_map.step_time import FlowMapError
from flowhooks.probe.times import Time
from flowhooks.quantization.plain import is_quantized, plain_linear
from flowhooks.sharding import whole


class Interval(SecondTime):
    """Adds a second time to one network, to be trained.

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
        copied = bare_copy(network.get_submodule(embedder))
        dtype = next(copied.parameters()).dtype
        super().__init__(
            network,
            embedder,
            [time for time in times if not time.second],
            copied.float().requires_grad_(True),
            dtype,
            gate=gate,
            deltatime_type=deltatime_type,
            timestep_scale=timestep_scale,
        )
        #: The scheduler of a pipeline that is known to be the one that runs, and may have lost what its times remember.
        self.scheduler: Telling | None = None
        #: What keeps the second time on the network, where that is for good.
        self.holder: Any = None
        self._between: tuple[Span | None] | None = None
        self._on = True

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Blend the network's time embedding inside the block."""
        detach = self.attach()
        try:
            yield
        finally:
            detach()

    @contextmanager
    def between(self, span: Span | None) -> Iterator[None]:
        """Let calls of the network in the block average over ``span``; with None they have no second time."""
        before, self._between = self._between, (span,)
        try:
            yield
        finally:
            self._between = before

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switch the second time of the network off inside the block."""
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    @contextmanager
    def told_by(self, scheduler: Telling) -> Iterator[None]:
        """Ask this scheduler where a step ends inside the block, if the time that the network is given does not say
        whose it is: some pipelines make a number of it. Only the scheduler's own pipeline may run there."""
        before, self.scheduler = self.scheduler, scheduler
        try:
            yield
        finally:
            self.scheduler = before

    def asked(self, arguments: Mapping[str, Any]) -> Span | None:
        if self._on and self._between is None:
            try:
                return super().asked(arguments)
            except FlowMapError as error:
                raise ModelError(str(error)) from error
        given = self._given(arguments)
        scheduler = self.scheduler if given is None else given.source
        if scheduler is not None:
            scheduler.pass_over()
        return self._between[0] if self._on and self._between is not None else None

    def _place(self, arguments: Mapping[str, Any]) -> tuple[Any, int]:
        if self.scheduler is None or self._given(arguments) is not None:
            return super()._place(arguments)
        return self.scheduler, self.scheduler.index_at(arguments[self.times[0].name], self.times[0])

    @property
    def description(self) -> dict[str, Any]:
        """Return what is needed to build it again without learning the pipeline, as JSON."""
        return {
            "embedder": self.name,
            "gate_value": self.gate,
            "deltatime_type": self.deltatime_type,
            "timestep_scale": self.timestep_scale,
            "times": [
                {
                    "name": time.name,
                    "scale": time.scale,
                    "offset": time.offset,
                    "dtype": str(time.dtype).removeprefix("torch."),
                    "unshifted": time.unshifted,
                }
                for time in self.times
            ],
        }


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
        name: None if p is None else nn.Parameter(whole(p.detach()).clone()) for name, p in module._parameters.items()
    }
    attributes["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    attributes["_modules"] = {name: None if m is None else bare_copy(m) for name, m in module._modules.items()}
    return clone
