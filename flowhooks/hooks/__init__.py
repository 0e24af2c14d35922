"""The hooks flowhooks ships, one a file: the maths as pure functions, then a class that puts it into slots.

The registry is free of torch; the classes are imported on first use.
"""

from __future__ import annotations

from typing import Any

from flowhooks.hooks.registry import HOOKS
from flowhooks.lazy import lazy_attribute

_MODULES = {name: module for module, _, name in (entry.path.partition(":") for entry in HOOKS.values())}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, _MODULES, name)
