"""A hook built by hand has the defaults that its schema gives one named in JSON."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from flowhooks.hooks.registry import HOOKS, hook_class
from tests.hooks.required import REQUIRED

SCHEMAS = Path(__file__).parents[2] / "schemas" / "hooks"


@pytest.mark.parametrize("type", HOOKS)
def test_constructor_and_schema_agree(type):
    parameters = inspect.signature(hook_class(type, "-")).parameters
    keywords = {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    own = {name: default for name, default in keywords.items() if default is not inspect.Parameter.empty}
    schema = json.loads((SCHEMAS / f"{type}.schema.json").read_text(encoding="utf-8"))
    written = {name: p["default"] for name, p in schema["properties"].items() if name in own}
    assert own == written
    assert set(schema["properties"]) - {"type", "$comment"} == set(keywords)
    assert set(schema["required"]) - {"type"} == set(keywords) - set(own) == set(REQUIRED.get(type, ()))
