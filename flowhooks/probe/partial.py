"""Partial forwards: the network runs up to a module, where an exception of our own ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn


class StopForward(Exception):
    """Thrown out of the network: what was wanted is known."""


@torch.no_grad()
def inputs_of(module: nn.Module, network: nn.Module, arguments: Mapping[str, Any], calls: int = 1) -> list[Any]:
    """(args, kwargs) of each of the first ``calls`` calls of ``module`` in a forward of the network, which ends there.

    It calls ``network.forward`` itself, so that forward hooks on the network do not run.
    """
    inputs: list[tuple[tuple, dict[str, Any]]] = []

    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs.append((args, kwargs))
        if len(inputs) == calls:
            raise StopForward

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with suppress(StopForward):
            network.forward(**arguments)
    finally:
        handle.remove()
    return inputs


@torch.no_grad()
def output_of(module: nn.Module, call: Callable[[], Any]) -> Any:
    """What ``module`` returns the first time that ``call`` reaches it; nothing runs after that."""
    found: list[Any] = []

    def stop(module: nn.Module, args: tuple, output: Any) -> None:
        found.append(output)
        raise StopForward

    handle = module.register_forward_hook(stop)
    try:
        with suppress(StopForward):
            call()
    finally:
        handle.remove()
    return found[0]
