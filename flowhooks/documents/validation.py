"""Checks values against schemas, reports every problem at once in words, and fills in the defaults."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jsonschema import ValidationError

from flowhooks.documents.document import json_path
from flowhooks.documents.schemas import schemas, validator
from flowhooks.documents.suggest import closest, listed, nearest
from flowhooks.errors import Problem
from flowhooks.reading import path_fault

_KINDS = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "an object",
    "string": "a string",
}
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
#: Bounds from here on are no rule of a method.
_ABSURD = 100_000
Schema = str | Mapping[str, Any]


def explain(error: ValidationError) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield (path below the validated value, message) for each problem that one schema error contains."""
    at = tuple(error.absolute_path)
    match error.validator:
        case "additionalProperties":
            for key in _unknown(error):
                yield (*at, key), _unknown_key(key, error)
        case "required":
            # One schema error is raised for each missing key, and names it only in its text.
            for key in error.validator_value:
                if key not in error.instance and repr(key) in error.message:
                    yield (*at, key), f"is missing; expected {_expected(error.schema['properties'].get(key, {}))}"
        case _:
            yield at, _value(error)


@dataclass(frozen=True)
class Unfit:
    """A value that JSON has nothing for, which is of no type there."""

    value: Any


def checkable(value: Any) -> Any:
    """Return a value with all that JSON cannot hold, such as NaN or an object of Python's, as :class:`Unfit`."""
    if isinstance(value, dict):
        return {key: checkable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [checkable(each) for each in value]
    holds = value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if holds else Unfit(value)


def shown(value: Any) -> str:
    """Return a JSON value as a part of a sentence."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the string {value if len(value) <= 60 else value[:57] + '...'!r}"
    if isinstance(value, (int, float)):
        return f"the number {value}"
    if isinstance(value, Unfit):
        value = value.value
        return f"the number {value}" if isinstance(value, float) else f"a {type(value).__name__}"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    return f"a {type(value).__name__}"


def _value(error: ValidationError) -> str:
    found, expected = error.instance, error.validator_value
    match error.validator:
        case "type":
            wanted = [expected] if isinstance(expected, str) else expected
            if names := error.schema.get("then", {}).get("enum"):
                # Only a few strings are taken, so a number in quotes is not what to write.
                others = _either([each for each in wanted if each != "string"])
                return f"expected {', '.join(map(repr, names))} or {others}, found {shown(found)}"
            return f"expected {_either(wanted)}, found {shown(found)}{_type_remedy(wanted, found)}"
        case "enum":
            words = _not_one_of(found, expected)
            return words if "did you mean" in words else words + _examples(error, "; or something like")
        case "const":
            return f"expected {shown(expected)}, found {shown(found)}"
        case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
            return f"expected {_range(error.schema, error.validator)}, found {found}"
        case "minItems" | "maxItems":
            return f"expected {_BOUNDS[error.validator[:3] + 'imum']} {_count(expected)}, found {len(found)}"
        case "uniqueItems":
            twice = next(item for i, item in enumerate(found) if item in found[:i])
            return f"{shown(twice)} is listed twice; remove one of the two"
        case "minLength":
            return "the string is empty; write a value or remove the key"
        case "format":
            return f"{shown(found)}: {path_fault(found)}"
        case "pattern":
            return f"{shown(found)} has the wrong form{_examples(error, '; expected something like')}"
    return error.message


def _not_one_of(found: Any, allowed: list[Any]) -> str:
    names = [each for each in allowed if isinstance(each, str)]
    either = listed(names) + (", or null" if None in allowed else "")
    if not isinstance(found, str):
        return f"expected one of {either}, found {shown(found)}"
    close = closest(found, names)
    return f"{found!r} is not one of {either}" + (f"; did you mean {close!r}?" if close else "")


def _unknown(error: ValidationError) -> list[str]:
    known = error.schema.get("properties", {})
    return [key for key in error.instance if key not in known and not key.startswith(("_comment", "$comment"))]


def _unknown_key(key: str, error: ValidationError) -> str:
    known = list(error.schema.get("properties", {}))
    close = closest(key, known) or _elsewhere(key)
    start = f"unknown key {key if len(key) <= 60 else key[:57] + '...'!r}; "
    if close:
        return f"{start}did you mean {close!r}?"
    # A list of all would be a screen long; the schema has them.
    return start + (f"the nearest keys are {listed(nearest(key, known))}" if known else "this object has no keys")


def _elsewhere(key: str) -> str | None:
    """Return the key as another section of a run has it, ``training.seed``, or None."""
    for name, section in schemas()["run"]["properties"].items():
        if key in section.get("properties", {}):
            return f"{name}.{key}"
    return None


def _type_remedy(wanted: list[str], found: Any) -> str:
    if isinstance(found, str):
        if re.fullmatch(r"\$\{?\w+\}?", found):
            return "; variables are not expanded in a file, write the value itself, or give it with --set"
        numbers = {"integer", "number"} & set(wanted)
        if numbers and _is_number(found) or "boolean" in wanted and found in ("true", "false"):
            return "; remove the quotes"
        if "array" in wanted and not numbers:
            return "; put it in brackets"
        if "null" in wanted and found in ("null", "None", "none"):
            return "; write null without quotes"
    if "string" in wanted and isinstance(found, (int, float)) and not isinstance(found, bool):
        return "; put it in quotes"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _range(schema: dict[str, Any], broken: str) -> str:
    """Return the bounds of a number. Bounds that only keep out absurd values are named only when they are broken."""
    told = {key: words for key, words in _BOUNDS.items() if key in schema}
    told = {key: words for key, words in told.items() if key == broken or abs(schema[key]) < _ABSURD}
    return "a number " + " and ".join(f"{words} {schema[key]}" for key, words in told.items())


def _examples(error: ValidationError, lead: str) -> str:
    examples = error.schema.get("examples", [])
    return f"{lead} {' or '.join(repr(each) for each in examples)}" if examples else ""


def _expected(schema: dict[str, Any]) -> str:
    kind = schema.get("type", "a value")
    words = _either([kind] if isinstance(kind, str) else kind) if "type" in schema else "a value"
    # The first of its sentences; the others are in the schema.
    about = re.split(r"\.(?=\s|$)", schema.get("description", ""))[0]
    return f"{words} ({about[:1].lower()}{about[1:]})" if about else words


def _either(kinds: list[str]) -> str:
    words = [_KINDS[kind] for kind in kinds]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _count(number: int) -> str:
    return f"{number} entry" if number == 1 else f"{number} entries"


def problems_in(value: Any, schema: Schema, *, file: str | None, root: str = "$") -> list[Problem]:
    """Return everything that is wrong with a value, in the order of the value.

    Args:
        schema: name of a shipped schema, or a schema.
        file: named in the problems.
        root: JSON path of ``value`` in that file.
    """
    by_place: dict[tuple[str | int, ...], list[tuple[str, str]]] = {}
    for error in validator(schema).iter_errors(checkable(value)):
        for place, message in explain(error):
            by_place.setdefault(place, []).append((str(error.validator), message))
    return [
        Problem(message, file=file, path=json_path(place, root))
        for place in sorted(by_place, key=lambda place: _position(value, place))
        for message in _telling(by_place[place])
    ]


def with_defaults(value: Any, schema: Schema) -> Any:
    """Return a copy of a valid value in which every key exists."""
    root = validator(schema)
    return _filled(copy.deepcopy(value), root.schema, root, root._resolver)


def _telling(errors: list[tuple[str, str]]) -> list[str]:
    """Keeps only the first cause: a value of the wrong type also fails its enum and its pattern."""
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
