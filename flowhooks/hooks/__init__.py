"""The hooks flowhooks ships, one a file: the maths as pure functions, then a class that puts it into slots.

The registry is free of torch; the classes are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_CLASSES = {
    "AnchorRegularizer": "anchor_regularizer",
    "FlowDPO": "flow_dpo",
    "MaskReducer": "mask_reducer",
    "PairedViews": "paired_views",
    "TimestepSchedule": "timestep_schedule",
}
__all__ = sorted(_CLASSES)


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_CLASSES[name]}"), name)
