"""Names of a package that are imported on first use: ``check`` and ``--help`` must not cost an import of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, rooms: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__``. It raises AttributeError for a name that the package has not.

    Args:
        rooms: name -> the module that holds it, in full.
    """

    def attribute(name: str) -> Any:
        if name not in rooms:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(rooms[name]), name)

    return attribute
