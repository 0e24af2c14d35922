"""Compute and compare the identity that a checkpoint stores: the parts of a run that a resumed run must share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from flowhooks.adapters.from_hub import fetch, on_disk
from flowhooks.adapters.names import USE_DORA, digest_of, find_file
from flowhooks.checks.output import LATEST
from flowhooks.config import Run
from flowhooks.data import Audit
from flowhooks.documents.spec import properties_of
from flowhooks.errors import CheckpointError, UnusableCheckpoint
from flowhooks.hooks.registry import HOOKS
from flowhooks.manifest import checkpoints_in, read_manifest
from flowhooks.reading import user_path
from flowhooks.sampling.prompts import by_argument, read_prompts
from flowhooks.train.topology import differences, likely_processes, without_topology

# These change how long, how fast or how loudly a run trains, not what it computes.
_FREE = {
    "training": {
        "max_train_steps",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "log_every_steps",
        "watchdog_seconds",
        "dataloader_num_workers",
        "compile",
        "compile_backend",
    },
    "model": {"attention_backend", "gradient_checkpointing", "checkpoint_offload", "offload", "keep_text_encoders"},
}
#: The option of hooks that changes how long a run trains.
_END_OF_RUN = "stop_when"
_MISSING = "nothing"
#: The digest of the training adapter in a flat identity. Without one the strength of none is compared.
_HELD = "adapter.training_adapter.sha256"
#: Contents that may change between a checkpoint and resuming from it -> the warning that is printed then.
_CHANGES = {
    "data": "the data sets have changed since the checkpoint; from here on samples come in another order",
    "prompts": "the file of `prompts` has changed since the checkpoint; from here on other prompts are drawn",
    "weights": "files of the base model have changed since the checkpoint; the adapter now trains over other weights",
}
_OF_MODELS = {".safetensors", ".json", ".txt", ".model"}
#: Number of bytes at either end of a file that enter its digest.
_END = 1 << 20


def identity(run: Run, audit: Audit, processes: int, *, fetching: bool = True) -> dict[str, Any]:
    """Return the identity of a run, as JSON.

    Args:
        fetching: fetch a training adapter that is on the Hub; else its content is unknown.

    Raises:
        AdapterError: there is no training adapter where the run says.
    """
    hooks = sorted(json.dumps({"type": hook.type, **hook.options}, sort_keys=True) for hook in run.hooks)
    data = hashlib.sha256()
    for record in audit.records:
        pictures = [record.image, record.rejected, *record.masks]
        *drawing, without_references = astuple(record.drawing)
        drawn = [record.key, record.bucket, record.captions, *drawing]
        # Left out where there are none, as in versions without columns and references.
        drawn += [record.columns] if record.columns else []
        if record.references:
            shown = [
                [each.argument, each.text] if each.image is None else [each.argument, each.size, each.image.digest]
                for each in record.references
            ]
            drawn += [without_references, shown]
        data.update(json.dumps([drawn, *(each.digest for each in pictures if each)]).encode())
    document = {
        # What does not set these is left out where it is off, as in versions without it.
        "model": {k: v for k, v in run.model.items() if k not in _FREE["model"] and (k != "quantization" or v)},
        "adapter": _adapter(run, fetching),
        "hooks": _keyed([json.loads(hook) for hook in hooks]),
        "training": {k: v for k, v in run.training.items() if k not in _FREE["training"]},
        "validation": {"holdout": run.validation["holdout"]},
        "processes": processes,
        "data": data.hexdigest(),
        "prompts": _prompts(run),
        "weights": _weights(run),
    }
    return json.loads(json.dumps(document))


def require_same(found: Mapping[str, Any], own: Mapping[str, Any], place: str) -> None:
    """Compare two identities; contents that changed are left to :func:`changes`, and how the global batch is spread
    may differ. Raises CheckpointError naming every key that differs."""
    found, own = without_topology(found, own, place)
    if "hooks" in own:
        found, own = ({**each, "hooks": _without_ends(each.get("hooks", {}))} for each in (found, own))
        own = {**own, "hooks": _as_known(own["hooks"], found["hooks"])}
    before, now = (_flat({k: v for k, v in each.items() if k not in _CHANGES}) for each in (found, own))
    digests = before.pop(_HELD, None), now.pop(_HELD, None)
    if None not in digests and digests[0] != digests[1]:
        raise UnusableCheckpoint(
            f"{place}: `adapter.training_adapter` is not the file that the checkpoint was trained with (its sha256 is "
            f"{digests[1]}, that file's {digests[0]}); put that file back, or start again in another `output_dir`"
        )
    different = [
        f"`{key}` is {_said(now, key)}, the checkpoint has {_said(before, key)}"
        for key in sorted({*before, *now})
        if before.get(key, _MISSING) != now.get(key, _MISSING)
    ]
    if different:
        raise UnusableCheckpoint(
            f"{place} was written by another run: {'; '.join(different)}. Resume with the run file it was written "
            f"by, or start again in "
            "another `output_dir`, with `adapter.init_from` to continue from these weights"
        )


def _without_ends(hooks: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of hooks without those that say when a run ends, which may be others in a resumed one."""
    return {
        key: {name: value for name, value in options.items() if name != _END_OF_RUN}
        if isinstance(options, Mapping)
        else options
        for key, options in hooks.items()
    }


def _as_known(own: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of hooks without those that the checkpoint's version did not have, where these are at their
    defaults, at which they change nothing."""
    known = {}
    for key, options in own.items():
        spec, before = HOOKS.get(key.partition("#")[0]), found.get(key)
        new = options.keys() - before.keys() if isinstance(before, Mapping) and spec is not None else set()
        defaults = {name: properties_of(spec)[name].get("default", _MISSING) for name in new}
        known[key] = {name: v for name, v in options.items() if name not in new or v != defaults[name]}
    return known


def refuse_other_run(run: Run, audit: Audit, resume: str) -> None:
    """Compare a run with the checkpoint that ``--resume`` names, by its manifest alone, before torch is imported. What
    cannot be read is left to :func:`flowhooks.train.train`. Raises CheckpointError as :func:`require_same` does."""
    folders = reversed(checkpoints_in(Path(run.output_dir))) if resume == LATEST else [user_path(resume)]
    for folder in folders:
        with suppress(CheckpointError):
            found = read_manifest(folder).identity
            break
    else:
        return
    require_same(found, identity(run, audit, processes_of(run, found)), str(folder))


def processes_of(run: Run, found: Mapping[str, Any]) -> int:
    """Return how many processes a run that resumes from a checkpoint of the identity ``found`` has or will have."""
    training = run.training
    return likely_processes(found, training["train_batch_size"], training["gradient_accumulation_steps"])


def _said(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else _MISSING


def changes(found: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """List which contents differ from those at the time of the checkpoint, or how batches are spread, and the
    consequences. A checkpoint of an older version stores nothing of prompts and base weights."""
    contents = (sentence for key, sentence in _CHANGES.items() if key in found and found[key] != own[key])
    return [*contents, *differences(found, own)]


def past_the_end(step: int, run: Run) -> str | None:
    """Say that a checkpoint of ``step`` lies after the last step of the run; None if it does not."""
    last = run.training["max_train_steps"]
    if step <= last:
        return None
    return (
        f"is at step {step:,}, after the last step {last:,} of this run; nothing is left to train. Raise "
        "`training.max_train_steps`"
    )


def _adapter(run: Run, fetching: bool) -> dict[str, Any] | None:
    """Return the adapter section, with the content of the training adapter in place of where it is."""
    if run.adapter is None:
        return None
    # Left out where they are off, as in versions without them.
    section = {k: v for k, v in run.adapter.items() if k != "training_adapter" and (k != USE_DORA or v)}
    held = run.adapter["training_adapter"]
    if held is None:
        return section
    place = fetch(held["path"]) if fetching else on_disk(held["path"])
    digest = None if place is None else digest_of(find_file(place))
    return {**section, "training_adapter": {"strength": held["strength"], "sha256": digest}}


def _prompts(run: Run) -> str | None:
    """Return a digest of the files that hooks read their prompts from, and of the references of these; None without
    one."""
    named = [hook.options.get("prompts") for hook in run.hooks]
    files = [user_path(name) for name in named if isinstance(name, str)]
    shown = (prompt.given for name in named if name is not None for prompt in read_prompts(name))
    paths = {path for given in shown for paths in by_argument(given, "").values() for path in paths}
    files += [Path(path) for path in sorted(paths)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else None


def _weights(run: Run) -> str | None:
    """Return a digest of a base model on this disk; None for others. Large files enter with their size and their
    ends."""
    name = run.model["pretrained_model_name_or_path"]
    folder = user_path(name) if name is not None else None
    if folder is None or not folder.is_dir():
        return None
    found = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _OF_MODELS):
        size = file.stat().st_size
        found.update(f"{file.relative_to(folder)} {size} ".encode(errors="surrogateescape"))
        with file.open("rb") as stream:
            found.update(stream.read(_END))
            stream.seek(max(0, size - _END))
            found.update(stream.read(_END))
    return found.hexdigest()


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
