"""Import names of a package on first use: ``check`` and ``--help`` must not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, rooms: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__``. It raises AttributeError for a name that the package lacks.

    Args:
        rooms: name -> full name of the module that holds it.
    """

    def attribute(name: str) -> Any:
        if name not in rooms:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(rooms[name]), name)

    return attribute
