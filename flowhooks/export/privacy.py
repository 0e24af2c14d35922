"""Keeping a machine's folders out of what is published."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_LOCAL = re.compile(r"(~|file://|[A-Za-z]:[\\/]|[\\/])")


def is_local_path(text: str) -> bool:
    """Whether a string is an absolute path of some machine."""
    return _LOCAL.match(text) is not None


def last_part(text: str) -> str:
    """The name of the folder or file at the end of a path, of either kind."""
    return PureWindowsPath(text).name if "\\" in text else PurePosixPath(text).name


def without_local_paths(document: Any) -> Any:
    """A copy of a JSON value in which every absolute path is only its last part; keys too."""
    if isinstance(document, dict):
        return {without_local_paths(key): without_local_paths(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [without_local_paths(value) for value in document]
    if isinstance(document, str) and is_local_path(document):
        return last_part(document)
    return document
