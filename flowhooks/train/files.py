"""Write files of an output folder under a temporary name and rename them, so that a file that exists is complete."""

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
    """Write as :func:`flowhooks.files.write_aside` does. Raises ``error`` when the disk refuses."""
    try:
        return files.write_aside(file, write)
    except REFUSALS as refusal:
        raise error(refused(file, refusal)) from refusal


def write_json(file: Path, document: Any, error: type[FlowhooksError]) -> Path:
    """Write indented JSON that ends with a newline."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return write_aside(file, lambda aside: aside.write_text(text, encoding="utf-8"), error)


def refused(file: Path, refusal: Exception) -> str:
    """Return the message for a write that failed."""
    if is_full(refusal):
        remedy = "free some space or choose another `output_dir`, then start again with `--resume latest`"
        return f"{file}: the disk is full ({refusal}); {remedy}"
    return f"{file}: cannot be written ({refusal}); check the folder's permissions, or choose another `output_dir`"


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Raise a full disk inside the block as TrainingError that names the file, or ``folder`` where the system names
    none. Adapters would raise errors of their own, which end the program as a wrong configuration does."""
    try:
        yield
    except (*REFUSALS, RuntimeError, AdapterError) as error:
        if not is_full(error):
            raise
        if isinstance(error, AdapterError):
            raise TrainingError(f"the disk is full: {error} Then start again with `--resume latest`.") from error
        raise TrainingError(refused(Path(getattr(error, "filename", None) or folder), error)) from error
