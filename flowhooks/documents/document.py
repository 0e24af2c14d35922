"""JSON as it stands in a configuration: its file, JSON paths, remarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowhooks import reading
from flowhooks.documents.suggest import hint
from flowhooks.errors import ConfigError, Problem
from flowhooks.json_faults import json_path as json_path


def read_json(path: Path) -> Any:
    """Contents of a JSON file. Raises ConfigError like :func:`flowhooks.reading.read_json`, with the file that was
    perhaps meant where there is none of this name."""
    if not _exists(path):
        raise ConfigError(Problem(f"there is no such file{_near(path)}", file=str(path)))
    return reading.read_json(path)


def without_remarks(value: Any) -> Any:
    """A copy without the keys that are remarks: ``$comment``, and whatever starts with ``_comment``."""
    if isinstance(value, dict):
        return {key: without_remarks(item) for key, item in value.items() if not reading.REMARK.match(key)}
    if isinstance(value, list):
        return [without_remarks(item) for item in value]
    return value


def _exists(path: Path) -> bool:
    """Whether there is something; what cannot even be asked for is told by who reads it."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return True


def _near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f", and no folder {str(folder)!r} either"
    try:
        names = [each.name for each in folder.iterdir() if each.suffix == ".json"]
    except OSError:
        return ""
    return hint(path.name, names)
