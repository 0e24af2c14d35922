"""Finds the JSON Schemas in the package or beside it, reads them once, and links them to each other.

``flowhooks schema --write schemas --force`` writes those of hooks and methods from their specs, and the three that list
hooks, methods and rewards; the others are written by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource

from flowhooks.reading import parse, path_fault

#: Relative references need a hierarchical base; nothing is ever fetched from it.
BASE = "file:///flowhooks/schemas/"
SUFFIX = ".schema.json"
#: ``"format": "path"`` in a schema: text that can be a path, whether or not there is such a file.
_FORMATS = FormatChecker(formats=())
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


@_FORMATS.checks("path")
def _is_path(value: object) -> bool:
    return not isinstance(value, str) or path_fault(value) is None


@cache
def schemas() -> Mapping[str, dict[str, Any]]:
    """Name -> schema: ``run``, ``dataloader``, ``hook``, ``method``, ``reward``, ``hooks/<type>``, ``methods/<name>``,
    ``rewards/<type>``."""
    return with_lists(dict(_read(_home())))


def with_lists(found: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return these schemas with the three that list hooks, methods and rewards."""
    weight = found["rewards/clip_score"]["properties"]["weight"]
    ordered = dict(sorted(found.items()))
    lists = {
        "hook": _any_class("hook", _names(ordered, "hooks/"), {}),
        "method": _any_method(ordered),
        "reward": _any_class("reward", _names(ordered, "rewards/"), {"weight": weight}),
    }
    return dict(sorted({**ordered, **lists}.items()))


@cache
def registry() -> Registry:
    """All schemas, for resolving references."""
    return Registry().with_resources(
        (uri(name), Resource.from_contents(contents)) for name, contents in schemas().items()
    )


def uri(name: str) -> str:
    return f"{BASE}{name}{SUFFIX}"


def validator(schema: str | Mapping[str, Any]) -> Draft202012Validator:
    """Return a validator for a schema, given by name or whole."""
    contents = {"$ref": uri(schema)} if isinstance(schema, str) else dict(schema)
    return Draft202012Validator(contents, registry=registry(), format_checker=_FORMATS)


def _home() -> Traversable:
    """Find the schemas: in a wheel they are the package ``flowhooks.schemas``; in a checkout they are beside the
    package."""
    try:
        shipped = resources.files("flowhooks.schemas")
        if shipped.joinpath(f"run{SUFFIX}").is_file():
            return shipped
    except ModuleNotFoundError:
        pass
    return Path(__file__).parents[2] / "schemas"


def _read(folder: Traversable, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = []
    for each in folder.iterdir():
        if each.is_dir():
            found += _read(each, f"{prefix}{each.name}/")
        elif each.name.endswith(SUFFIX):
            found.append((prefix + each.name.removesuffix(SUFFIX), parse(each.read_bytes())))
    return found


def _names(found: Mapping[str, Any], prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in found if name.startswith(prefix)]


def _any_class(kind: str, types: list[str], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a shipped class, named by its type, or of one named by its import path. Both have the
    properties ``shared``."""
    cases = [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"$ref": f"{kind}s/{name}{SUFFIX}"},
        }
        for name in types
    ]
    return {
        "$schema": _DIALECT,
        "title": f"flowhooks {kind}",
        "description": f"One {kind}: a shipped one by its type, or a class of your own by its import path.",
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {
                "description": f"Name of a shipped {kind}, or package.module:Class.",
                "type": "string",
                "if": {"not": {"pattern": "^[A-Za-z_][A-Za-z_0-9.]*:[A-Za-z_][A-Za-z_0-9]*$"}},
                "then": {"enum": types, "examples": [f"my_package.{kind}s:My{kind.title()}"]},
            },
            **shared,
        },
        "allOf": cases,
    }


def _any_method(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    names = _names(found, "methods/")
    return {
        "$schema": _DIALECT,
        "title": "flowhooks method",
        "description": "Options of a method, by its name.",
        "type": ["object", "null"],
        "properties": {
            name: {
                "description": found[f"methods/{name}"]["description"],
                "$ref": f"methods/{name}{SUFFIX}",
                "default": None,
            }
            for name in names
        },
        "patternProperties": found["run"]["patternProperties"],
        "additionalProperties": False,
        "$defs": {"name": {"type": ["string", "null"], "enum": [*names, None]}},
    }
