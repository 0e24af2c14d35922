"""Values against schemas: every problem at once, then the defaults."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from flowhooks.documents.document import json_path
from flowhooks.documents.messages import explain
from flowhooks.documents.schemas import validator
from flowhooks.errors import Problem

Schema = str | Mapping[str, Any]


def problems_in(value: Any, schema: Schema, *, file: str | None, root: str = "$") -> list[Problem]:
    """Everything wrong with a value, in the order it is written.

    Args:
        schema: name of a shipped schema, or a schema.
        file: named in the problems.
        root: JSON path of ``value`` in that file.
    """
    by_place: dict[tuple[str | int, ...], list[tuple[str, str]]] = {}
    for error in validator(schema).iter_errors(value):
        for place, message in explain(error):
            by_place.setdefault(place, []).append((str(error.validator), message))
    return [
        Problem(message, file=file, path=json_path(place, root))
        for place in sorted(by_place, key=lambda place: _position(value, place))
        for message in _telling(by_place[place])
    ]


def with_defaults(value: Any, schema: Schema) -> Any:
    """A copy of a valid value in which every key exists."""
    root = validator(schema)
    return _filled(copy.deepcopy(value), root.schema, root, root._resolver)


def _telling(errors: list[tuple[str, str]]) -> list[str]:
    """A value of the wrong type also misses its enum and its pattern: only the first cause is worth telling."""
    for cause in ("type", "enum"):
        messages = [message for keyword, message in errors if keyword == cause]
        if messages:
            return messages[:1]
    return list(dict.fromkeys(message for _, message in errors))


def _position(value: Any, place: tuple[str | int, ...]) -> list[int]:
    position = []
    for part in place:
        if isinstance(value, dict):
            keys = list(value)
            position.append(keys.index(part) if part in keys else -1)
        else:
            position.append(int(part))
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            break
    return position


def _filled(value: Any, schema: Mapping[str, Any], root: Any, resolver: Any) -> Any:
    if "$ref" in schema:
        target = resolver.lookup(schema["$ref"])
        value = _filled(value, target.contents, root, target.resolver)
    for part in schema.get("allOf", ()):
        value = _filled(value, part, root, resolver)
    if "if" in schema:
        holds = root.evolve(schema=schema["if"], _resolver=resolver).is_valid(value)
        value = _filled(value, schema.get("then" if holds else "else", {}), root, resolver)
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
            if name in value:
                value[name] = _filled(value[name], part, root, resolver)
    if isinstance(value, list) and "items" in schema:
        value = [_filled(item, schema["items"], root, resolver) for item in value]
    # JSON does not tell 400 from 400.0; code that counts needs the integer.
    if isinstance(value, float) and schema.get("type") in ("integer", ["integer", "null"]):
        value = int(value)
    return value
