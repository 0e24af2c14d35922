"""Data set configurations -> records -> pairs -> caches -> batches.

``audit`` is free of torch; the rest is imported on first use, so that ``flowhooks check`` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS = {
    "Audit": "records",
    "CachedDataset": "dataset",
    "Record": "records",
    "audit": "pairing",
    "batch_plan": "sampler",
    "build_cache": "cache",
    "collate": "dataset",
    "data_loader": "loader",
    "epoch_at": "sampler",
}
__all__ = sorted(_ROOMS)


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
