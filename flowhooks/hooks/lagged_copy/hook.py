"""Keeps a copy of the trained weights that lags behind them, which costs megabytes beside an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.hooks.lagged_copy import LaggedCopySpec
from flowhooks.hooks.swapping import swapped
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session
from flowhooks.sharding import local


def kept_share(steps: int, growth: float, start: int, most: float, least: float = 0.0) -> float:
    """Return ``min(least + growth * max(steps - start, 0), most)``: how much of itself the copy keeps after so many
    steps."""
    return min(least + growth * max(steps - start, 0), most)


class LaggedCopy(LaggedCopySpec, Hook):
    """Gives its role to a copy: ``old <- d old + (1 - d) policy`` at every ``every``-th optimiser step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._steps = 0
        self._parameters: Mapping[str, nn.Parameter] = {}
        self._values: list[Tensor] = []

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        with session.roles.registered(self.role, self._swapped):
            yield

    def started(self, session: Session) -> None:
        self._parameters = session.parameters()
        self._values = [parameter.detach().clone() for parameter in self._parameters.values()]

    @torch.no_grad()
    def updated(self) -> None:
        self._steps += 1
        if self._steps % self.every:
            return
        kept = kept_share(self._steps, self.growth, self.start, self.most, self.least)
        for value, parameter in zip(self._values, self._parameters.values(), strict=True):
            local(value).lerp_(local(parameter), 1 - kept)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "values": dict(zip(self._parameters, self._values, strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._steps = int(state["steps"])
        for name, own in zip(self._parameters, self._values, strict=True):
            own.copy_(state["values"][name])

    def _swapped(self) -> AbstractContextManager[None]:
        return swapped(self._parameters, self._values)
