"""Files of an output folder: written aside and renamed, so one that exists is whole."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from flowhooks import files
from flowhooks.errors import FlowhooksError

REFUSALS = (OSError, SafetensorError)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS = ("No space left", "Disk quota", "File too large")


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
    if getattr(refusal, "errno", None) in _FULL or any(words in str(refusal) for words in _FULL_WORDS):
        remedy = "free some space or choose another `output_dir`, then start again with `--resume latest`"
        return f"{file}: the disk is full ({refusal}); {remedy}"
    return f"{file}: cannot be written ({refusal}); check the folder's permissions, or choose another `output_dir`"
