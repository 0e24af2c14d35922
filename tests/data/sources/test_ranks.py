"""Tables of one image a row with a score or a place: a set makes pairs of them when it is loaded."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowhooks.errors import ConfigError, DataError
from tests.data.folders import audit_in, load, partner_set, write_image
from tests.data.sources.kept import half_mask, picture

#: Rows of image, caption, score, group.
ROWS = [
    ("a", "a cat", 3, "1"),
    ("d", "a dog", 1, "2"),
    ("b", "", 9, "1"),
    ("c", "a cat", 5, "1"),
    ("e", "a dog", 1, "2"),
    ("f", "a fox", 7, "3"),
    ("g", "a cat", "", "1"),
]


def scored(root: Path, rows=ROWS, way: str = "best-worst", **keys) -> dict:
    for seed, name in enumerate("abcdefg"):
        write_image(root / f"{name}.png", seed=seed)
    lines = [",".join(map(str, (f"{name}.png", *rest))) for name, *rest in rows]
    (root / "list.csv").write_text("\n".join(["file,words,points,prompt_id", *lines]) + "\n")
    columns = {"image": "file", "caption": "words", "score": "points", "group": "prompt_id", **keys.pop("columns", {})}
    named = {name: column for name, column in columns.items() if column}
    return {"id": "votes", "type": "csv", "instance_data_dir": "list.csv", "columns": named, "pairs": way, **keys}


def sides(found) -> list[tuple[str, str]]:
    return [(each.image.asset.path.stem, each.rejected.asset.path.stem) for each in found.records]


@pytest.mark.parametrize(
    "way, gap, expected, keys",
    [
        ("best-worst", 0, [("b", "a")], ["b"]),
        ("adjacent", 0, [("b", "c"), ("c", "a")], ["b over c", "c over a"]),
        ("all", 0, [("b", "c"), ("b", "a"), ("c", "a")], ["b over c", "b over a", "c over a"]),
        ("all", 3, [("b", "c"), ("b", "a")], ["b over c", "b over a"]),
    ],
)
def test_pairs_of_each_group(tmp_path, way, gap, expected, keys):
    block = scored(tmp_path, way=way, min_gap=gap)
    assert load(tmp_path, [block]).provides == {"data:image", "data:rejected"}
    found = audit_in(tmp_path, [block])
    assert sides(found) == expected and [each.key for each in found.records] == keys
    # The row of `b` has no caption: it is that of its group.
    assert {each.caption for each in found.records} == {"a cat"} and found.provides == {"image", "rejected"}
    made = f"votes: {len(expected)} pair{'s' * (len(expected) > 1)} ({way}) of 6 images in 3 groups"
    assert any(line == f"{made}; 1 row without a number left out" for line in found.report), found.report
    alone = "2 groups without a pair: 1 of one image (3), 1 of scores that are equal or too close (2)"
    assert f"votes: {alone}" in found.warnings


def test_places_captions_as_groups_and_other_columns(tmp_path):
    block = scored(tmp_path, [row for row in ROWS if row[0] != "b"], columns={"score": "", "group": ""})
    block["columns"] |= {"order": "points", "task": "prompt_id"}
    found = audit_in(tmp_path, [block])
    assert sides(found) == [("a", "c")] and found.records[0].columns == {"task": "1"}
    again = load(tmp_path, load(tmp_path, [block]).document()["datasets"])
    assert again.document() == load(tmp_path, [block]).document()


def test_a_pair_keeps_its_name_when_rows_are_added(tmp_path):
    fewer = audit_in(tmp_path, [scored(tmp_path, [row for row in ROWS if row[0] != "c"], "all")])
    more = audit_in(tmp_path, [scored(tmp_path, [*ROWS, ("f", "a dog", 5, "2")], "all")])
    named = {each.key: each.image.asset.path.stem for each in more.records}
    assert [named[each.key] for each in fewer.records] == [each.image.asset.path.stem for each in fewer.records]


def test_bytes_in_cells_with_a_linked_mask(tmp_path):
    table = {"image": [picture(i) for i in range(3)], "text": ["x"] * 3, "rank": [2, 1, 3]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    (tmp_path / "mask/t").mkdir(parents=True)
    (tmp_path / "mask/t/1.png").write_bytes(half_mask())
    block = {"id": "r", "type": "parquet", "instance_data_dir": "t.parquet", "columns": {"order": "rank"}}
    blocks = [{**block, "pairs": "best-worst", "conditioning_data": "mask"}, partner_set("mask", "mask")]
    (record,) = audit_in(tmp_path, blocks).records
    assert (record.image.asset.read(), record.rejected.asset.read()) == (picture(1), picture(2)) and record.masks


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"columns": {"score": ""}}, ".pairs: needs one column of numbers under `columns`, `score` or `order`"),
        ({"columns": {"order": "words"}}, ".pairs: needs one column of numbers under `columns`, `score` or `order`"),
        ({"columns": {"rejected": "file"}}, ".pairs: makes the rejected sides itself"),
        ({"columns": {"preference": "points"}}, ".pairs: makes pairs of rows of one image"),
        ({"columns": {"group": "team"}}, ".columns.group: there is no column 'team'"),
        ({"caption_strategy": "filename"}, ".caption_strategy: images that `pairs` compares share a caption"),
        ({"caption_strategy": "instanceprompt", "instance_prompt": "x", "columns": {"group": ""}}, "name a column as"),
        ({"way": None, "min_gap": 1}, ".min_gap: does nothing without `pairs`"),
        ({"min_gap": 50}, "no two images of a group differ by 50 or more"),
        (
            {"rows": [*ROWS, ("a", "a cat", 1, "1")]},
            "rows that show an image of their group again (1): list.csv line 9",
        ),
        ({"rows": [*ROWS, ("g", "a cow", 1, "1")]}, "rows with another caption than their group (1): list.csv line 9"),
        ({"rows": [*ROWS, ("g", "a cat", "much", "1")]}, "holds 'much', which is no number"),
        ({"rows": [*ROWS, ("g", "a cat", "inf", "1")]}, "holds an infinite number"),
        ({"rows": [*ROWS, ("g", "a cat", 1, "")]}, "rows with nothing in 'prompt_id' (1): list.csv line 9"),
        ({"rows": [*ROWS, ("h", "a cat", 1, "1")]}, "files that cannot be used (1): list.csv line 9 (h.png)"),
        ({"ties": "keep"}, ".ties: 'keep' is for rows of two images"),
        ({"dataset_type": "conditioning", "conditioning_type": "mask"}, ".pairs: belongs to an image set"),
    ],
)
def test_what_cannot_be_compared(tmp_path, wrong, message):
    with pytest.raises((ConfigError, DataError)) as refused:
        audit_in(tmp_path, [scored(tmp_path, **wrong)])
    assert message in str(refused.value)


def test_without_pairs_a_score_is_a_column_as_any_other(tmp_path):
    block = scored(tmp_path, [("a", "a cat", 3, "1")], None)
    assert [each.columns for each in audit_in(tmp_path, [block]).records] == [{"score": "3", "group": "1"}]
