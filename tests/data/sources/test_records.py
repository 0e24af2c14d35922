"""Columns that a block names by a word of its own travel with each sample, whatever they hold."""

from __future__ import annotations

import datetime
import json
import pickle
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowhooks.data import build_cache, collate
from flowhooks.errors import DataError
from tests.data.folders import audit_in, load, problems_in, write_image
from tests.data.sources.kept import KEEPERS, picture, samples

KEYS = ("a", "b", "sub/c", "sub/d")
TABLES = [name for name in KEEPERS if name != "local"]
LABELS = {
    "numbers": [1, 0, 7, -2],
    "fractions": [0.5, 1.0, -3.25, 1e300],
    "words": ["001", "NA", "up", "true"],
    "truth": [True, False, True, True],
    "lists": [[1, 2], [3], [4], [5, 6]],
    "objects": [{"by": "a", "path": "x"}, {"by": "b", "path": "y"}, {"by": "c", "path": "z"}, {"by": "d", "path": ""}],
}


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FLOWHOOKS_HOME", str(tmp_path_factory.mktemp("home")))


def labelled(tmp_path, keeper: str, labels: list[Any], **more: str) -> dict[str, Any]:
    kept = [replace(each, label=label) for each, label in zip(samples(KEYS), labels, strict=True)]
    (block,) = KEEPERS[keeper](tmp_path, kept)
    return {**block, "columns": {"label": "thumbs", **more}}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("keeper", TABLES)
def test_cells_stay_what_the_table_holds(tmp_path, keeper, kind):
    block = labelled(tmp_path, keeper, LABELS[kind])
    assert "data:label" in load(tmp_path, [block]).provides
    found = audit_in(tmp_path, [block])
    assert "label" in found.provides
    of_text = keeper in ("csv", "imagefolder, csv")
    expected = sorted(map(repr, map(str, LABELS[kind]) if of_text else LABELS[kind]))
    assert sorted(repr(record.columns["label"]) for record in found.records) == expected
    assert pickle.loads(pickle.dumps(found.records)) == found.records
    assert "hooks may read 'label'" in found.report[0]


@pytest.mark.parametrize("keeper", TABLES)
def test_a_missing_cell_names_its_row(tmp_path, keeper):
    (problem,) = problems_in(tmp_path, [labelled(tmp_path, keeper, [1, None, 1, 0])])
    assert "$[0].columns.label: rows with nothing in 'thumbs' (1): " in problem
    assert any(name in problem for name in ("b.png", ": b;", "line 3", "line 2", "row 1")), problem


@pytest.mark.parametrize("keeper", TABLES)
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path, keeper):
    block = labelled(tmp_path, keeper, [1, 0, 1, 0], other="thumb")
    (problem,) = problems_in(tmp_path, [block])
    assert "$[0].columns.other: there is no column 'thumb'; did you mean 'thumbs'?" in problem


@pytest.mark.parametrize("value", [b"\x89PNG", datetime.date(2026, 1, 2)])
def test_what_no_record_can_hold_is_refused_with_its_row(tmp_path, value):
    table = pa.table({"image": [picture(0), picture(1)], "text": ["x", "y"], "thumbs": [value, value]})
    pq.write_table(table, tmp_path / "data.parquet")
    block = {"id": "win", "type": "parquet", "instance_data_dir": "data.parquet", "columns": {"label": "thumbs"}}
    (problem,) = problems_in(tmp_path, [block])
    assert "$[0].columns.label: cells of 'thumbs' that cannot be used (2): data.parquet row 0 holds" in problem


def test_nan_is_a_missing_cell(tmp_path):
    table = pa.table({"image": [picture(0), picture(1)], "text": ["x", "y"], "thumbs": [float("nan"), 1.0]})
    pq.write_table(table, tmp_path / "data.parquet")
    block = {"id": "win", "type": "parquet", "instance_data_dir": "data.parquet", "columns": {"label": "thumbs"}}
    (problem,) = problems_in(tmp_path, [block])
    assert "rows with nothing in 'thumbs' (1): data.parquet row 0" in problem


def listing(tmp_path, **keys: Any) -> dict[str, Any]:
    for seed, name in enumerate("abc"):
        write_image(tmp_path / f"set/{name}.png", seed=seed)
    rows = [f"{name}.png,a,{name}.png,up,deep" for name in "ab"]
    (tmp_path / "set/list.csv").write_text("\n".join(["good,words,worse,thumbs,task", *rows]) + "\n")
    return {"id": "win", "type": "csv", "instance_data_dir": "set/list.csv", **keys}


def test_roles_may_be_named_among_the_columns(tmp_path):
    named = {"image": "good", "caption": "words", "rejected": "worse"}
    block = listing(tmp_path, columns={**named, "label": "thumbs", "task": "task"})
    data = load(tmp_path, [block])
    assert data.provides == {"data:image", "data:rejected", "data:label", "data:task"}
    found = audit_in(tmp_path, [block])
    assert [record.columns for record in found.records] == [{"label": "up", "task": "deep"}] * 2
    assert all(record.rejected and record.caption == "a" for record in found.records)
    # Written into a run's folder, it is read back as it was.
    assert load(tmp_path, data.document()["datasets"]).blocks[0]["columns"] == block["columns"]


@pytest.mark.parametrize(
    ("columns", "more", "words"),
    [
        ({"capton": "words"}, {}, "$[0].columns.capton: did you mean 'caption'?"),
        ({"Masks": "thumbs"}, {}, "$[0].columns.Masks: did you mean 'mask'?"),
        ({"image_column": "good"}, {}, "$[0].columns.image_column: did you mean 'image'?"),
        ({"image": "good"}, {"image_column": "worse"}, "$[0].columns.image: is 'good', and `image_column` is 'worse'"),
        ({"image": "god"}, {}, "$[0].columns.image: there is no column 'god'; did you mean 'good'?"),
        ({"label": ["thumbs", "task"]}, {}, "$[0].columns.label: is a list of 2"),
        ({"label": 3}, {}, "$[0].columns.label: "),
        ({"label": "thumbs"}, {"type": "local", "instance_data_dir": "set"}, "does nothing for type 'local'"),
        (
            {"label": "thumbs"},
            {"dataset_type": "conditioning", "conditioning_type": "mask"},
            "$[0].columns.label: belongs to an image set",
        ),
    ],
)
def test_what_is_not_meant_is_told(tmp_path, columns, more, words):
    block = listing(tmp_path, caption_column="words", **{"columns": {"image": "good", **columns}, **more})
    with pytest.raises(DataError) as caught:
        audit_in(tmp_path, [block])
    assert words in str(caught.value)


def test_words_like_those_of_roles_are_free(tmp_path):
    names = ("task", "label", "score", "age", "tags", "source", "width")
    block = listing(tmp_path, columns={"image": "good", "caption": "words", **dict.fromkeys(names, "thumbs")})
    assert set(audit_in(tmp_path, [block]).records[0].columns) == set(names)


def test_only_what_every_image_set_has_is_given(tmp_path):
    named = {"image": "good", "caption": "words"}
    one = listing(tmp_path, columns={**named, "label": "thumbs", "task": "task"})
    other = {**one, "id": "other", "columns": {**named, "label": "task"}}
    assert load(tmp_path, [one, other]).provides == {"data:image", "data:label"}
    found = audit_in(tmp_path, [one, other])
    assert found.provides == {"image", "label"}
    assert {json.dumps(record.columns) for record in found.records} == {
        '{"label": "up", "task": "deep"}',
        '{"label": "deep"}',
    }
    off = {**other, "disabled": True}
    assert "data:task" in load(tmp_path, [one, off]).provides


def test_a_batch_holds_the_records_of_its_samples_and_the_cache_knows_none(tmp_path, model):
    block = listing(tmp_path, columns={"image": "good", "caption": "words", "label": "thumbs"})
    dataset = build_cache(audit_in(tmp_path, [block]), model, tmp_path / "cache", progress=False)
    assert collate([dataset[1], dataset[0]]).records == ({"label": "up"}, {"label": "up"})
    made = sorted((tmp_path / "cache").rglob("*.safetensors"))
    bare = build_cache(
        audit_in(tmp_path, [{**block, "columns": {"image": "good", "caption": "words"}}]),
        model,
        tmp_path / "cache",
        progress=False,
    )
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == made and len(made) == 2
    assert collate([bare[0], bare[1]]).records == ()
    assert collate([bare[0], dataset[0]]).records == ({}, {"label": "up"})
