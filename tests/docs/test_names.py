"""Pages that tell what to look at name metrics, options and files that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from flowhooks.documents.schemas import schemas
from tests.docs import pages
from tests.docs.pages import ROOT

_NAME = re.compile(r"`([a-z]+(?:_[a-z0-9]+)+)`")


def keys(document: Any) -> Iterator[str]:
    """Every key of a document, at any depth."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield key
            yield from keys(value)
    elif isinstance(document, list):
        for value in document:
            yield from keys(value)


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Metrics that the golden runs log, and everything that schemas name."""
    golden = [json.loads((ROOT / f"tests/golden/{name}.json").read_text("utf-8")) for name in ("digits", "laws")]
    return {*keys(golden), *keys(dict(schemas())), "seconds_per_step"}


@pytest.mark.parametrize("name", ["logs", "trouble", "choose", "concepts", "first_preference", "few_steps"])
def test_names_exist(name: str, known: set[str]) -> None:
    text = pages.read(f"docs/{name}.md")
    enums = {value for schema in schemas().values() for value in re.findall(r'"([a-z_0-9]+)"', json.dumps(schema))}
    assert sorted(set(_NAME.findall(text)) - known - enums) == []
