"""Adapters behind one face: PEFT LoRA, LoHa and LoKr, and LyCORIS, on any Diffusers transformer.

``build_adapter`` injects one, ``build_second`` another beside it, ``load_adapter`` brings back what ``Adapter.save``
wrote, ``Adapter.detach`` takes it off without a trace. ``FrozenAdapter`` is a teacher: a file that computes beside
whatever is trained.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS = {
    "Adapter": "base",
    "FrozenAdapter": "frozen",
    "build_adapter": "build",
    "build_second": "second",
    "load_adapter": "load",
}
__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    """Import on first use: `flowhooks check` looks at adapter files without torch."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
