"""Names of a package that are imported on first use: ``check`` and ``--help`` must not cost an import of torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def lazy_attribute(package: str, rooms: Mapping[str, str], name: str) -> Any:
    """What ``name`` is in a package, for its ``__getattr__``.

    Args:
        rooms: name -> the module that holds it, in full.

    Raises:
        AttributeError: the package has no such name.
    """
    if name not in rooms:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(rooms[name]), name)
