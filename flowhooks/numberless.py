"""Tensors without numbers, on torch's meta device, on which steps are counted."""

from __future__ import annotations

from torch import Tensor


def holds(flag: Tensor, otherwise: bool) -> bool:
    """Return the bool that a 0-dim tensor holds, or ``otherwise`` for one on the meta device, which holds none."""
    return otherwise if flag.is_meta else bool(flag)
