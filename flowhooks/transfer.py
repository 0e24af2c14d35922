"""Copies between host and device that make neither wait for the other.

A plain ``.to(device)`` of a tensor on the host, ``torch.tensor(..., device=...)`` and a list as an index all wait until
the device has done everything it was asked to do before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def sent(value: Tensor, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Tensor:
    """Return the tensor on a device. The host does not wait for a copy from itself to the device; for one to itself it
    must, as it reads it.

    Args:
        device: None for where it is.
        dtype: None for that which it has.
    """
    there = value.device if device is None else torch.device(device)
    ahead = value.device.type == "cpu" and there.type != "cpu"
    if ahead and there.type == "cuda" and not value.is_pinned():
        value = value.pin_memory()
    return value.to(device=there, dtype=dtype, non_blocking=ahead)


def bring(module: nn.Module, device: torch.device) -> None:
    """Move a module to a device, unless all of it is there and some of it is quantised: torch refuses even to keep a
    quantised weight where it is while something, such as compiled code, has a weak reference to it."""
    weights = list(chain(module.parameters(), module.buffers()))
    there = all((each.device.type, each.device.index or 0) == (device.type, device.index or 0) for each in weights)
    if not (there and any(map(is_traceable_wrapper_subclass, weights))):
        module.to(device)


def parked(value: Tensor) -> Tensor:
    """Return a copy on the host, to be sent back to the device later. The host must not read it: on a GPU the copy may
    still be under way, and is done before whatever the device is asked next."""
    if value.device.type == "cpu":
        return value
    kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return kept.copy_(value, non_blocking=True)


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the host, in memory of their own. On a GPU they go into pinned memory, all at once,
    and are waited for once."""
    copies, waits = {}, False
    for name, value in tensors.items():
        if value.is_cuda:
            kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            copies[name], waits = kept.copy_(value.detach(), non_blocking=True), True
        else:
            copies[name] = value.detach().cpu().clone().contiguous()
    if waits:
        torch.cuda.synchronize()
    return copies


def whole_numbers(values: Sequence[int], device: torch.device) -> Tensor:
    """Return ``[N]`` int64 on a device."""
    return sent(torch.tensor(list(values), dtype=torch.int64), device)


def picked(value: Tensor, rows: Sequence[int]) -> Tensor:
    """Return these rows of ``[B, ...]``, in this order."""
    return value.index_select(0, whole_numbers(rows, value.device))
