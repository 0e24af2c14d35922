"""Puts other values in place of trained weights for a while: another model that costs no second network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flowhooks.sharding import exchange


@contextmanager
def swapped(parameters: Mapping[str, nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Puts values in place of the trained ones inside the block, and the trained ones again after it.

    Args:
        values: one for each parameter, in order.
    """
    pairs = list(zip(parameters.values(), values, strict=True))
    own = [(p, value) for p, value in pairs if not isinstance(p, DTensor)]
    sharded = [(p, value) for p, value in pairs if isinstance(p, DTensor)]
    trained = [p.data for p, _ in own]
    try:
        # Autocast keeps casts by parameter, whatever data the parameter holds.
        torch.clear_autocast_cache()
        for parameter, value in own:
            parameter.data = value.to(parameter.device, parameter.dtype)
        exchange(sharded)
        yield
    finally:
        torch.clear_autocast_cache()
        for (parameter, _), data in zip(own, trained, strict=True):
            parameter.data = data
        exchange(sharded)
