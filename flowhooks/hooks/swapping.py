"""Puts other values in place of trained weights for a while: another model that costs no second network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def swapped(parameters: Mapping[str, nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Puts values in place of the trained ones inside the block, and the trained ones again after it.

    Args:
        values: one for each parameter, in order.
    """
    own = list(parameters.values())
    trained = [p.data for p in own]
    try:
        # Autocast keeps casts by parameter, whatever data the parameter holds.
        torch.clear_autocast_cache()
        for parameter, value in zip(own, values, strict=True):
            parameter.data = value.to(parameter.device, parameter.dtype)
        yield
    finally:
        torch.clear_autocast_cache()
        for parameter, data in zip(own, trained, strict=True):
            parameter.data = data
