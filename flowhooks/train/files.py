"""Files of an output folder: written aside and renamed, so one that exists is whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowhooks import files
from flowhooks.errors import AdapterError, FlowhooksError, TrainingError
from flowhooks.files import REFUSALS, is_full


def write_aside(file: Path, write: Callable[[Path], object], error: type[FlowhooksError]) -> Path:
    """As :func:`flowhooks.files.write_aside`. Raises ``error`` when the disk refuses."""
    try:
        return files.write_aside(file, write)
    except REFUSALS as refusal:
        raise error(refused(file, refusal)) from refusal


def write_json(file: Path, document: Any, error: type[FlowhooksError]) -> Path:
    """Indented JSON with a newline at its end."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return write_aside(file, lambda aside: aside.write_text(text, encoding="utf-8"), error)


def refused(file: Path, refusal: Exception) -> str:
    """The sentence for a write that failed."""
    if is_full(refusal):
        remedy = "free some space or choose another `output_dir`, then start again with `--resume latest`"
        return f"{file}: the disk is full ({refusal}); {remedy}"
    return f"{file}: cannot be written ({refusal}); check the folder's permissions, or choose another `output_dir`"


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """A full disk inside the block is a TrainingError that names the file, or ``folder`` where the system names none,
    whoever was writing: adapters have errors of their own, which end a program as a wrong configuration does."""
    try:
        yield
    except (*REFUSALS, RuntimeError, AdapterError) as error:
        if not is_full(error):
            raise
        if isinstance(error, AdapterError):
            raise TrainingError(f"the disk is full: {error} Then start again with `--resume latest`.") from error
        raise TrainingError(refused(Path(getattr(error, "filename", None) or folder), error)) from error
