"""The hooks flowhooks ships, one a file: the maths as pure functions, then a class that puts it into slots.

The registry is free of torch; the classes are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flowhooks.hooks.registry import HOOKS

_MODULES = {name: module for module, _, name in (entry.path.partition(":") for entry in HOOKS.values())}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
