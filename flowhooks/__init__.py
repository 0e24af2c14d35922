"""Composable training hooks for stock Diffusers flow-matching pipelines."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "attach": "attaching",
    "Batch": "kernel",
    "Hook": "kernel",
    "Session": "kernel",
}
__all__ = [*sorted(_ROOMS), "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use: ``import flowhooks`` must not cost an import of torch."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
