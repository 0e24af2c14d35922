"""Every schema, held to the same rules."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers.models.attention_dispatch import AttentionBackendName
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from flowhooks.commands.schema import from_specs
from flowhooks.documents.schemas import schemas, uri, validator
from flowhooks.hooks.timestep_schedule import LIST, MODE

FOLDER = Path(__file__).parents[2] / "schemas"
FREE_FORM = {"pipeline_arguments", "optimizer_args"}
EVERY = sorted(schemas())


def objects(schema: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every sub-schema that lists properties of its own, conditions aside."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield name, schema
        for key, part in schema.items():
            if key not in ("if", "then", "else", "allOf", "default", "examples", "enum"):
                yield from objects(part, f"{name}/{key}")


@pytest.mark.parametrize("name", EVERY)
def test_is_a_valid_2020_12_schema(name):
    assert schemas()[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(schemas()[name])


@pytest.mark.parametrize("name", EVERY)
def test_every_property_has_a_description_and_a_default_unless_required(name):
    seen = 0
    for place, schema in objects(schemas()[name]):
        for key, part in schema["properties"].items():
            seen += 1
            assert part.get("description", "").endswith("."), f"{place}: {key}"
            assert ("default" in part) != (key in schema.get("required", [])), f"{place}: {key}"
    assert seen


@pytest.mark.parametrize("name", EVERY)
def test_unknown_keys_are_refused_but_remarks_are_not(name):
    for place, schema in objects(schemas()[name]):
        # The lists of all hooks and rewards leave that to the schema of each, and to the classes of others.
        if name not in ("hook", "reward"):
            assert schema["additionalProperties"] is False, place
            assert Draft202012Validator({"patternProperties": schema["patternProperties"]}).is_valid({"_comment": 1})


def test_free_form_objects_are_the_documented_ones():
    def free(schema: Any, key: str = "") -> Iterator[str]:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and schema.get("additionalProperties") is True:
                yield key
            for name, part in schema.items():
                yield from free(part, name)

    assert set(free(schemas()["run"])) == FREE_FORM


@pytest.mark.parametrize("name", EVERY)
def test_defaults_are_valid(name):
    for place, schema in objects(schemas()[name]):
        for key, part in schema["properties"].items():
            if "default" in part and part["default"] != {}:
                property = {"$ref": f"{uri(name)}#{place}/properties/{key}"}
                assert validator(property).is_valid(part["default"]), (place, key)


@pytest.mark.parametrize("name", EVERY)
def test_the_file_in_the_repository_is_what_is_used(name):
    """`make generated` writes those of hooks and methods, and the lists of them, anew from the specs."""
    written = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    assert written == schemas()[name] == from_specs()[name]


def test_references_resolve_between_files_as_an_editor_does_it():
    def retrieve(uri: str) -> Resource:
        return Resource.from_contents(json.loads(Path(uri.removeprefix("file://")).read_text(encoding="utf-8")))

    start = {"$ref": (FOLDER / "run.schema.json").as_uri()}
    run = Draft202012Validator(start, registry=Registry(retrieve=retrieve))
    assert run.is_valid(
        {"hooks": [{"type": "flow_dpo"}], "method": {"sft": {}}, "data": [{"id": "a", "instance_data_dir": "b"}]}
    )
    assert not run.is_valid({"hooks": [{"type": "flow_dpo", "betta": 1}]})
    assert not run.is_valid({"data": [{"id": "a", "instance_data_dir": "b", "crop": "left"}]})
    reward = Draft202012Validator(
        {"$ref": (FOLDER / "reward.schema.json").as_uri()}, registry=Registry(retrieve=retrieve)
    )
    assert reward.is_valid({"type": "clip_score", "model": "a", "weight": 0.5})
    assert not reward.is_valid({"type": "clip_score", "modle": "a"})


def test_every_spec_has_a_file_and_the_other_way_round():
    assert set(schemas()) == set(from_specs())


@pytest.mark.parametrize("key", (LIST, MODE))
def test_an_alias_of_the_schedule_of_times_is_described_as_the_option_it_stands_for(key):
    assert schemas()["run"]["properties"][key] == from_specs()["hooks/timestep_schedule"]["properties"][key]


def test_attention_backends_are_those_of_diffusers():
    offered = set(schemas()["run"]["properties"]["model"]["properties"]["attention_backend"]["enum"])
    assert offered == {each.value for each in AttentionBackendName}


def numbers(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every sub-schema of a number, conditions aside."""
    if isinstance(schema, dict):
        kinds = schema.get("type")
        if {"integer", "number"} & set(kinds if isinstance(kinds, list) else [kinds] if isinstance(kinds, str) else []):
            yield place, schema
        for key, part in schema.items():
            if key not in ("if", "then", "else", "default", "examples", "enum"):
                yield from numbers(part, f"{place}/{key}")
    elif isinstance(schema, list):
        for i, part in enumerate(schema):
            if "then" not in part:
                yield from numbers(part, f"{place}/{i}")


@pytest.mark.parametrize("name", EVERY)
def test_every_number_has_bounds_that_a_float_holds(name):
    for place, schema in numbers(schemas()[name], name):
        most = schema.get("maximum", schema.get("exclusiveMaximum", math.inf))
        least = [s.get(k) for s in (schema, schema.get("else", {})) for k in ("minimum", "exclusiveMinimum") if k in s]
        assert most <= 4294967295 and least and least[0] >= -4294967295, place
