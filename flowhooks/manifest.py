"""Name the files in a run's folder, and read the manifest of a checkpoint: sizes and digests of its files, which show a
changed byte. Free of torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowhooks.errors import CheckpointError, UnusableCheckpoint
from flowhooks.reading import parse, read_text

#: The resolved run.
RUN = "run.json"
#: The model card.
CARD = "README.md"
#: The metrics that were logged last.
METRICS = "metrics.json"
#: The metrics of a run, one line per logged step.
HISTORY = "metrics.jsonl"
#: What else a run tells, one line each: its start, warnings, memory, and how it ended.
EVENTS = "events.jsonl"
#: The page that shows a run.
REPORT = "report.html"
#: How that page begins, by which a file of this name is known as one that a run may replace.
REPORT_MARK = "<!doctype html><!-- flowhooks report -->"
#: Weights that hooks trained beside an adapter.
MODULES = "flowhooks_modules.safetensors"
#: Python that loads a flow map where flowhooks is not installed.
LOADER = "flow_map_loader.py"
#: The pipeline of a run that trained the whole network.
PIPELINE = "pipeline"
#: The folder of images that are generated during training.
VALIDATION = "validation"
#: The list of the files of a checkpoint, with their digests.
MANIFEST = "manifest.json"


CHECKPOINT = re.compile(r"checkpoint-(\d+)")
FORMAT = 1
#: The manifest's digest of itself, which older versions lack, and the keys that all versions have.
OWN = "sha256"
_HELD = {"format", "step", "files", "identity"}
#: Names that it may list: files in its own folder, and nowhere else.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Holds what a checkpoint stores about itself: its step, its files as (size, sha256), and the run it belongs to."""

    step: int
    files: dict[str, tuple[int, str]]
    identity: dict[str, Any]


def checkpoints_in(folder: Path) -> list[Path]:
    """List folders named like checkpoints, oldest first, complete or not."""
    if not folder.is_dir():
        return []
    found = {
        int(named[1]): each
        for each in folder.iterdir()
        if (named := CHECKPOINT.fullmatch(each.name)) and each.is_dir() and not each.is_symlink()
    }
    return [found[step] for step in sorted(found)]


def no_checkpoint(folder: Path) -> str | None:
    """Say why a path cannot be a checkpoint, and what to name instead; None if it may be one."""
    if not folder.is_dir():
        return "there is no such checkpoint; give a checkpoint-<step> folder of this run, or `latest`"
    if not (folder / MANIFEST).is_file() and (inside := checkpoints_in(folder)):
        return f"is a run's folder, not a checkpoint of it; name {inside[-1]}, or `latest` of this `output_dir`"
    return None


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a checkpoint. Raises CheckpointError if it is missing, damaged, or of another version of
    flowhooks."""
    if (refusal := no_checkpoint(folder)) is not None:
        raise UnusableCheckpoint(f"{folder}: {refusal}")
    try:
        return _manifest(read_text(folder / MANIFEST), folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableCheckpoint(
            f"{folder}: {MANIFEST} is missing or damaged ({error}); use another checkpoint"
        ) from error


def _manifest(text: str, folder: Path) -> Manifest:
    """Parse the text of a manifest.

    Raises:
        CheckpointError: it has another version.
        ValueError, KeyError, TypeError, AttributeError: it has changed since it was written.
    """
    document = parse(text)
    # Before anything else is trusted, the version too.
    if OWN in document and document[OWN] != own_digest(document):
        raise ValueError("its content does not match its own digest")
    version = document["format"]
    if version != FORMAT:
        message = f"{folder}: is in format {version}, this flowhooks reads {FORMAT}; use the version it was made with"
        raise UnusableCheckpoint(message)
    if unknown := document.keys() - _HELD - {OWN}:
        raise ValueError(f"it holds {min(unknown)[:60]!r}")
    files = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in document["files"].items()}
    for name in files:
        if not _PLAIN.fullmatch(name):
            raise ValueError(f"it names a file {name[:60]!r}")
    return Manifest(step=int(document["step"]), files=files, identity=dict(document["identity"]))


def own_digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest as canonical JSON (keys sorted, no spaces, ASCII) without the digest itself."""
    held = {key: value for key, value in manifest.items() if key != OWN}
    return hashlib.sha256(json.dumps(held, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify(folder: Path) -> None:
    """Raise CheckpointError unless every file is as it was written."""
    for name, written in read_manifest(folder).files.items():
        if (fault := _changed(folder / name, written)) is not None:
            raise UnusableCheckpoint(f"{folder}: {name} {fault}; use another checkpoint")


def damage(file: Path) -> str | None:
    """Say what is wrong with one file of a checkpoint, or with the manifest that should list it; None if it is as it
    was written, and for files of any other folder.

    Raises:
        OSError: it cannot be read.
    """
    folder = file.absolute().parent
    if not (folder / MANIFEST).is_file() or not _is_ours(folder):
        return None
    try:
        written = read_manifest(folder).files.get(file.name)
    except CheckpointError as error:
        return str(error)
    fault = None if written is None else _changed(file, written)
    return None if fault is None else f"{file.parent}: {file.name} {fault}; use another checkpoint"


def digest(file: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _changed(file: Path, written: tuple[int, str]) -> str | None:
    if not file.is_file():
        return "is missing"
    found, (size, sha256) = file.stat().st_size, written
    if found != size:
        return f"is damaged ({found} bytes, {size} were written)"
    if digest(file) != sha256:
        return f"is damaged (its bytes have another sha256 than {MANIFEST} says)"
    return None


def _is_ours(folder: Path) -> bool:
    """Return whether a manifest belongs to a checkpoint: other programs have files of that name."""
    if CHECKPOINT.fullmatch(folder.name):
        return True
    try:
        document = parse(read_text(folder / MANIFEST))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.keys() >= _HELD
