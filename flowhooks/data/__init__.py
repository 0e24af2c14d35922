"""Turn data set configurations into records, pairs, caches and batches.

``audit`` is free of torch; the rest is imported on first use, so that ``flowhooks check`` stays quick.
"""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes

_EXPORTS = {
    "Audit": "flowhooks.data.records",
    "CachedDataset": "flowhooks.data.dataset",
    "PromptCache": "flowhooks.data.prompts",
    "Record": "flowhooks.data.records",
    "Schedule": "flowhooks.data.schedule",
    "Stream": "flowhooks.data.schedule",
    "Survey": "flowhooks.data.pairing",
    "audit": "flowhooks.data.pairing",
    "batch_plan": "flowhooks.data.sampler",
    "bucket_report": "flowhooks.data.buckets",
    "build_cache": "flowhooks.data.cache",
    "collate": "flowhooks.data.dataset",
    "data_loader": "flowhooks.data.loader",
    "streams": "flowhooks.data.schedule",
    "survey": "flowhooks.data.pairing",
}
__all__ = sorted(_EXPORTS)
__getattr__ = lazy_attributes(__name__, _EXPORTS)
