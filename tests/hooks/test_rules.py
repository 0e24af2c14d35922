"""What a hook's class refuses, `check` refuses without it, in the same words."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flowhooks.hooks
from flowhooks.config import resolve_hook
from flowhooks.documents.schemas import schemas
from flowhooks.errors import ConfigError
from flowhooks.hooks.registry import HOOKS, hook_class
from flowhooks.hooks.spec import HookSpec
from tests.hooks.required import REQUIRED

OBJECTS: list[Any] = [{"a": "b"}, {"base": "x"}, {"a": "base"}, {}]
LISTS: list[Any] = [[1, 2], [0, 5], [8, 20], ["a"], [], [{"type": "clip_score", "model": "a/b"}], [{"prompt": "a"}]]
#: Options that name code, which is imported in training alone.
CODE = {"route"}


def values(option: dict[str, Any]) -> list[Any]:
    """Some that an option may have, the ends of its range among them."""
    kinds = option.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    found = [*option.get("enum", []), *([option["default"]] if "default" in option else [])]
    if {"number", "integer"} & set(kinds):
        low = option.get("minimum", option.get("exclusiveMinimum", 0))
        high = option.get("maximum", option.get("exclusiveMaximum", low + 20))
        found += [low, high, low + 1, *([low + 1e-3, high - 1e-3, (low + high) / 2] if "number" in kinds else [])]
    some = {"null": [None], "boolean": [True, False], "string": ["x", "adapter:x"], "array": LISTS, "object": OBJECTS}
    return found + [value for kind, offered in some.items() if kind in kinds for value in offered]


def drawn(type: str, count: int) -> Iterator[dict[str, Any]]:
    """Complete options that the schema allows."""
    choose = random.Random(type)
    schema = schemas()[f"hooks/{type}"]
    options = {name: each for name, each in schema["properties"].items() if name not in ("type", *CODE)}
    needed = [name for name in schema["required"] if name != "type"]
    for _ in range(count):
        names = {*needed, *choose.sample(sorted(options), min(len(options), choose.randint(1, 4)))}
        block = {name: choose.choice(values(options[name])) for name in sorted(names)}
        try:
            yield resolve_hook({**REQUIRED.get(type, {}), **block, "type": type}, "$").options
        except ConfigError:
            continue


@pytest.mark.parametrize("type", HOOKS)
def test_a_class_refuses_what_its_rule_refuses_and_nothing_else(type):
    build, tried, told = hook_class(type, "$"), 0, set()
    for options in drawn(type, 600 if type == "ends" else 200):
        tried += 1
        try:
            build(**options)
            said = None
        except ValueError as error:
            said = str(error)
        assert HOOKS[type].unchecked(options).refusal() == said, options
        told.add(said is None)
    assert tried and (HOOKS[type].refusal is HookSpec.refusal or told == {True, False}), f"{tried} tried, {told}"


def test_the_hooks_that_draw_from_pure_noise_are_known():
    folder = Path(flowhooks.hooks.__file__).parent
    calling = {
        file.parent.name
        for file in folder.glob("*/hook.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "require_whole_path"
    }
    assert calling == {type for type, spec in HOOKS.items() if spec.whole_path}
