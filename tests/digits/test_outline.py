"""What is known of the embedded pipeline before it is built is what is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowhooks.checks.pipeline import pipeline_folder
from flowhooks.checks.sizes import edge_step, size_refusal
from flowhooks.digits.pipeline import write_outline
from flowhooks.digits.places import building_notice, outline, place_of


def documents(folder: Path) -> dict[str, object]:
    return {str(f.relative_to(folder)): json.loads(f.read_text(encoding="utf-8")) for f in folder.rglob("*.json")}


def test_the_outline_that_is_shipped_is_that_of_what_is_built(tmp_path):
    """Where it is not: `write_outline(outline())` writes it anew."""
    write_outline(tmp_path)
    assert documents(outline()) == documents(tmp_path)


@pytest.mark.parametrize("name", ["digits", "digits:untrained"])
def test_what_is_not_built_is_told(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWHOOKS_HOME", str(tmp_path))
    sentence = building_notice(name)
    assert sentence is not None and "not built yet" in sentence and str(place_of(name)) in sentence
    place_of(name).mkdir(parents=True)
    assert building_notice(name) is None and building_notice("a/b") is None


def test_sizes_of_the_digits():
    folder = pipeline_folder({"pretrained_model_name_or_path": "digits", "revision": None})
    assert folder == outline()
    assert edge_step(folder, {"transformer": ("", ""), "vae": ("", "")}) == 8
    assert size_refusal(folder, 32, 32) is None
    assert "31 pixels do not fit" in (size_refusal(folder, 32, 31) or "")
