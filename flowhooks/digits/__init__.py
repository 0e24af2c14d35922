"""The embedded digits: real scans, a small real pipeline, and a judge, all built on this machine without a download."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "ensure_data": "scans",
    "resolve_data": "scans",
    "ensure_model": "model",
    "resolve_model": "model",
    "Judge": "judge",
    "ensure_judge": "judge",
}
__all__ = ["Judge", "ensure_data", "ensure_judge", "ensure_model", "resolve_data", "resolve_model"]


def __getattr__(name: str) -> Any:
    """Import on first use: checking a run must not cost an import of torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
