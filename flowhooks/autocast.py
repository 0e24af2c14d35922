"""Torch's autocast on whatever device a tensor is, also on one that autocast does not know.

Tensors without numbers, on the meta device, follow the autocast of the CPU, under which :mod:`flowhooks.memory` counts
them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_dtype(like: Tensor) -> torch.dtype | None:
    """What autocast computes in on the device of ``like``; None where it is off."""
    kind = _kind(like)
    # Of a device that it does not know, torch may not be asked whether it is on.
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Inside the block, autocast is off on the device of ``like``."""
    kind = _kind(like)
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _kind(like: Tensor) -> str:
    return "cpu" if like.is_meta else like.device.type
