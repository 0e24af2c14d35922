"""The hooks flowhooks ships, a folder each: the spec in its ``__init__``, free of torch, the class in ``hook``, longer
maths beside it.

What lies in this room directly is shared by hooks, or finds and builds them. The classes are imported on first use.
"""

from __future__ import annotations

from typing import Any

from flowhooks.lazy import lazy_attributes


def _classes() -> dict[str, str]:
    # The specs import this package while it is being imported itself.
    from flowhooks.hooks.registry import HOOKS, class_path

    return {name: module for module, _, name in (class_path(type).partition(":") for type in HOOKS)}


def __dir__() -> list[str]:
    return sorted({*globals(), *_classes()})


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_classes())
    return lazy_attributes(__name__, _classes())(name)
