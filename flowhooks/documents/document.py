"""JSON of a configuration: its file, JSON paths and remarks. Secrets are removed, since they would end up in logs,
checkpoints and published files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowhooks import reading
from flowhooks.documents.suggest import hint
from flowhooks.errors import ConfigError, Problem
from flowhooks.json_faults import json_path as json_path

_KEY = re.compile(
    r"(^|[_\-.])(token|api_?key|password|passwd|secret|credentials?)$|^(hf|hub|wandb)(token|apikey)$", re.I
)
_VALUE = re.compile(
    r"\b(hf_(?=[A-Za-z0-9]*[0-9A-Z])[A-Za-z0-9]{8,}|hf_[A-Za-z]{24,}|api_org_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|sk-[A-Za-z0-9_-]{20,})"
)
#: A user name with a password, in an address.
_LOGIN = re.compile(r"(?<=://)[^/?#:@\s]+:[^/?#@\s]+(?=@)")
_REMEDY = (
    "take it out and use `hf auth login`, or an environment variable such as HF_TOKEN; a run file holds no secrets"
)


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file. Raises ConfigError like :func:`flowhooks.reading.read_json`; where no file
    has this name, it suggests one that does exist."""
    if not _exists(path):
        raise ConfigError(Problem(f"there is no such file{_near(path)}", file=str(path)))
    return reading.read_json(path)


def as_json(value: Any) -> Any:
    """Return a value as JSON has it: tuples as lists, paths as strings, numbers of NumPy as Python's. What JSON has
    nothing for stays as it is."""
    if isinstance(value, Mapping):
        return {key: as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # Scalars and arrays of NumPy, without importing it.
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return value


def without_remarks(value: Any) -> Any:
    """Return a copy as JSON has it, see :func:`as_json`, without the keys that are remarks: ``$comment``, and whatever
    starts with ``_comment``."""
    return _without_remarks(as_json(value))


def _without_remarks(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_remarks(item)
            for key, item in value.items()
            if not (isinstance(key, str) and reading.REMARK.match(key))
        }
    return [_without_remarks(item) for item in value] if isinstance(value, list) else value


def _exists(path: Path) -> bool:
    """Whether the path exists; False where it cannot be checked, since the reader reports why."""
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


def redact(text: str) -> str:
    """``text`` with everything that looks like a token replaced."""
    return _LOGIN.sub("***", _VALUE.sub("***", text))


def _secret(text: str) -> str | None:
    """Return what is secret in a value, in words; None where nothing is."""
    if _LOGIN.search(text):
        return "this address holds a user name or password"
    return "this value looks like a token" if _VALUE.search(text) else None


def strip_secrets(value: Any, file: str, root: str = "$") -> tuple[Any, list[Problem]]:
    """A copy of a document without its secrets, and a problem for each. The secrets themselves are never repeated."""
    problems: list[Problem] = []

    def clean(item: Any, at: tuple[str | int, ...]) -> Any:
        if isinstance(item, dict):
            kept = {}
            for key, inner in item.items():
                if _secret(key) or _KEY.search(key):
                    problems.append(
                        Problem(f"this key holds a secret; {_REMEDY}", file, json_path((*at, redact(key)), root))
                    )
                else:
                    kept[key] = clean(inner, (*at, key))
            return kept
        if isinstance(item, list):
            return [clean(inner, (*at, i)) for i, inner in enumerate(item)]
        if isinstance(item, str) and (found := _secret(item)):
            problems.append(Problem(f"{found}; {_REMEDY}", file, json_path(at, root)))
            return redact(item)
        return item

    return clean(value, ()), problems


def read_settings(file: Path) -> dict[str, Any]:
    """Read an object that Diffusers wrote: numbers in its JSON may be infinite. Raises ConfigError."""
    try:
        found = reading.parse(reading.read_text(file), finite=False, largest=float("inf"))
    except (OSError, ValueError, RecursionError) as error:
        message = f"cannot be read ({error}); save the pipeline with save_pretrained again"
        raise ConfigError(Problem(message, str(file))) from None
    if not isinstance(found, dict):
        raise ConfigError(Problem("expected an object; save the pipeline with save_pretrained again", str(file)))
    return found
