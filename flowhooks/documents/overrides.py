"""``--set a.b[0].c=value``: changes to a run from the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flowhooks.documents.document import json_path, redact
from flowhooks.errors import Problem
from flowhooks.reading import MAX_DEPTH, MAX_INTEGER, BadJson, check_sound, parse

FILE = "--set"
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


def apply(document: dict[str, Any], overrides: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """Change ``document`` in place.

    Returns:
        The JSON paths that now come from the command line, and a problem for each override that cannot be read or whose
        place cannot exist.
    """
    problems: list[Problem] = []
    places: list[str] = []
    for override in overrides:
        try:
            parts, text = _read(override)
            places += _put(document, parts, _value(parts, text))
        except _BadValue as error:
            problems.append(Problem(redact(str(error)), FILE, error.path))
        except ValueError as error:
            problems.append(Problem(redact(str(error)), file=FILE))
    return places, problems


def attribute_to_override(problems: Sequence[Problem], file: str, places: Sequence[str]) -> list[Problem]:
    """Return the problems with ``--set`` in place of the file where the value came from the command line."""
    return [replace(p, file=FILE) if p.file == file and _within(p.path or "$", places) else p for p in problems]


def _within(path: str, places: Sequence[str]) -> bool:
    return any(path == place or path.startswith((f"{place}.", f"{place}[")) for place in places)


class _BadValue(ValueError):
    """A value that is valid JSON but is refused, with its JSON path."""

    def __init__(self, message: str, path: str):
        super().__init__(message)
        self.path = path


def _value(parts: list[str | int], text: str) -> Any:
    """Return the value behind the ``=``: JSON, or a string where it is no valid JSON."""
    try:
        return parse(text)
    except BadJson as error:
        if error.syntax:
            return text
        raise _BadValue(str(error), json_path(parts)) from None


def _read(override: str) -> tuple[list[str | int], str]:
    check_sound(override)
    name, equals, text = override.partition("=")
    name = name.strip().removeprefix("$.")
    if not equals or not name:
        raise ValueError(f"{override!r} has no '='; write it like training.learning_rate=1e-3")
    parts: list[str | int] = []
    end = 0
    for step in _STEP.finditer(name):
        if step.start() != end:
            break
        # No list has an entry with so many digits, and Python refuses to read thousands.
        parts.append(step[1] if not step[2] else int(step[2]) if len(step[2]) < 20 else MAX_INTEGER)
        end = step.end()
    if end != len(name) or not parts:
        raise ValueError(f"{name!r} is not a path; write it like training.learning_rate or hooks[0].beta")
    if len(parts) > MAX_DEPTH:
        raise ValueError(
            f"a path of {len(parts):,} steps is too long; at most {MAX_DEPTH} lists and objects stand inside each other"
        )
    return parts, text


def _put(document: Any, parts: list[str | int], value: Any) -> list[str]:
    """Set one value, and create missing objects on the way. Returns the new paths."""
    made: list[str] = []
    holder = document
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        path = json_path(parts[: depth + 1])
        _check_holder(holder, part, json_path(parts[:depth]), parts)
        if last:
            holder[part] = value
            return [*made, path]
        if isinstance(part, str) and holder.get(part) is None:
            holder[part] = {} if isinstance(parts[depth + 1], str) else []
            made.append(path)
        holder = holder[part]
    return made


def _check_holder(holder: Any, part: str | int, at: str, parts: list[str | int]) -> None:
    path = json_path(parts)
    if isinstance(part, int):
        if not isinstance(holder, list):
            raise ValueError(f"{path}: {at} is not a list")
        if part >= len(holder):
            size = f"ends at [{len(holder) - 1}]" if holder else "has no entries in this file"
            method = "; the options of a method are set at method.<name>.<key>" if at == "$.hooks" else ""
            raise ValueError(f"{path}: {at} {size}{method}")
    elif not isinstance(holder, dict):
        kind = "a list; write the number of the entry, as in [0]" if isinstance(holder, list) else "a plain value"
        raise ValueError(f"{path}: {at} is {kind}")
