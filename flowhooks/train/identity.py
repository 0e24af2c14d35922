"""What a checkpoint belongs to: the parts of a run that must be the same for a resumed one to be the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from flowhooks.config import Run
from flowhooks.data import Audit
from flowhooks.errors import UnusableCheckpoint

# These change how long, how fast or how loudly a run trains, not what it computes.
_FREE = {
    "training": {
        "max_train_steps",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "log_every_steps",
        "dataloader_num_workers",
    },
    "model": {"attention_backend", "gradient_checkpointing"},
}
_MISSING = "nothing"


def identity(run: Run, audit: Audit, processes: int) -> dict[str, Any]:
    """The identity of a run, as JSON."""
    hooks = sorted(json.dumps({"type": hook.type, **hook.options}, sort_keys=True) for hook in run.hooks)
    data = hashlib.sha256()
    for record in audit.records:
        pictures = [record.image, record.rejected, *record.masks]
        drawn = [record.key, record.bucket, record.captions, *astuple(record.drawing)]
        data.update(json.dumps([drawn, *(each.digest for each in pictures if each)]).encode())
    document = {
        "model": {k: v for k, v in run.model.items() if k not in _FREE["model"]},
        "adapter": run.adapter,
        "hooks": _keyed([json.loads(hook) for hook in hooks]),
        "training": {k: v for k, v in run.training.items() if k not in _FREE["training"]},
        "validation": {"holdout": run.validation["holdout"]},
        "processes": processes,
        "data": data.hexdigest(),
    }
    return json.loads(json.dumps(document))


def require_same(found: Mapping[str, Any], own: Mapping[str, Any], place: str) -> None:
    """Raises CheckpointError naming every key that differs; other data is left to the caller, see :func:`same_data`."""
    before, now = (_flat({k: v for k, v in each.items() if k != "data"}) for each in (found, own))
    different = [
        f"`{key}` is {now.get(key, _MISSING)!r}, the checkpoint has {before.get(key, _MISSING)!r}"
        for key in sorted({*before, *now})
        if before.get(key, _MISSING) != now.get(key, _MISSING)
    ]
    if different:
        raise UnusableCheckpoint(
            f"{place} was written by another run: {'; '.join(different)}. Resume with the run file it was written "
            f"by, or start anew in "
            "another `output_dir`, with `adapter.init_from` to go on from these weights"
        )


def same_data(found: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the data sets are the same, file by file."""
    return found["data"] == own["data"]


def _keyed(hooks: list[dict[str, Any]]) -> dict[str, Any]:
    keyed: dict[str, Any] = {}
    for hook in hooks:
        name, count = hook["type"], 1
        while name in keyed:
            count += 1
            name = f"{hook['type']}#{count}"
        keyed[name] = {key: value for key, value in hook.items() if key != "type"}
    return keyed


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or (prefix and not value):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat
