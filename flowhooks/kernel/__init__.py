"""The engine: slots, roles, views. It knows no model and no method.

``plan`` is free of torch; the rest is imported on first use, so that ``flowhooks check`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS = {
    "Assembly": "assembly",
    "Batch": "view",
    "Declaration": "plan",
    "Draws": "random",
    "Hook": "hook",
    "Plan": "plan",
    "Session": "session",
    "Step": "step",
    "StepResult": "view",
    "View": "view",
}
__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
