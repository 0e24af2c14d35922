"""Which columns are used, and what is said about the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowhooks.config import load_datasets
from flowhooks.errors import DataError
from tests.data.folders import audit_in, load, problems_in, write_image, write_mask
from tests.data.sources.kept import half_mask, keep_webdataset, picture, samples

NAMES = ("001", "NA", "c")


def listing(root: Path, header: str, *rows: str, name: str = "set/metadata.csv") -> dict[str, str]:
    for i, each in enumerate(NAMES):
        write_image(root / f"set/{each}.png", seed=3 * i)
        write_image(root / f"set/bad/{each}.png", seed=3 * i + 1)
        write_image(root / f"set/bad/{each}-2.png", seed=3 * i + 2)
        (root / f"set/{each}-where.png").write_bytes(half_mask())
    (root / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return {"id": "win", "type": "imagefolder", "instance_data_dir": "set"}


def each(pattern: str) -> list[str]:
    return [pattern.replace("@", name) for name in NAMES]


def test_names_and_captions_stay_text(tmp_path):
    rows = ["001.png,007", "NA.png,NA", 'c.png,"a, ""b"""']
    found = audit_in(tmp_path, [listing(tmp_path, "file_name,text", *rows)])
    assert [(record.key, record.caption) for record in found.records] == [("001", "007"), ("NA", "NA"), ("c", 'a, "b"')]


def test_every_column_of_partners_applies(tmp_path):
    header = "file_name,text,rejected_file_name,rejected_worse_file_name,mask_file_name,hand_mask_file_name"
    block = listing(tmp_path, header, *each("@.png,x,bad/@.png,bad/@-2.png,@-where.png,@-where.png"))
    assert load(tmp_path, [block]).provides == {"data:image", "data:rejected", "data:mask"}
    found = audit_in(tmp_path, [block])
    assert [record.key for record in found.records] == ["001", "001", "NA", "NA", "c", "c"]
    assert [record.rejected.asset.path.stem for record in found.records[:2]] == ["001", "001-2"]
    assert all(len(record.masks) == 2 for record in found.records)


def test_partners_may_be_named_and_switched_off(tmp_path):
    block = listing(tmp_path, "file_name,text,rejected_file_name,other", *each("@.png,x,bad/@.png,bad/@-2.png"))
    named = audit_in(tmp_path, [{**block, "rejected_column": "other"}])
    assert named.records[0].rejected.asset.path.stem == "001-2"
    assert any("nothing uses the column 'rejected_file_name'" in line for line in named.warnings)
    assert audit_in(tmp_path, [{**block, "rejected_column": []}]).provides == {"image"}


def test_what_is_listed_nowhere_is_named(tmp_path):
    block = listing(tmp_path, "file_name,text,depth_file_name", *each("@.png,x,@-where.png")[:2])
    warnings = audit_in(tmp_path, [block]).warnings
    assert "win: nothing uses the column 'depth_file_name'; name it in `rejected_column` or `mask_column`" in warnings
    unlisted = (
        "001-where.png, NA-where.png, bad/001-2.png, bad/001.png, bad/NA-2.png, bad/NA.png, bad/c-2.png, bad/c.png"
    )
    assert f"win: 10 images that no row lists: {unlisted}, c-where.png, c.png" in warnings


def test_several_rows_may_show_one_image(tmp_path):
    rows = ["c.png,x,bad/c.png", "c.png,x,bad/c-2.png"]
    found = audit_in(tmp_path, [listing(tmp_path, "file_name,text,rejected_file_name", *rows)])
    assert [record.rejected.asset.path.stem for record in found.records] == ["c", "c-2"]
    assert [record.key for record in found.records] == ["c", "c#2"] and found.counts["images"] == 1


def test_sub_folders_have_tables_of_their_own(tmp_path):
    block = listing(tmp_path, "file_name,text", *each("@.png,x"))
    (tmp_path / "set/bad/metadata.jsonl").write_text('{"file_name": "c.png", "text": "inside"}\n')
    found = audit_in(tmp_path, [block])
    assert [record.key for record in found.records] == ["bad/c", "001", "NA", "c"]
    (tmp_path / "set/metadata.jsonl").write_text('{"file_name": "c.png", "text": "again"}\n')
    assert any("folders with several metadata files (1): ." in each for each in problems_in(tmp_path, [block]))


def test_a_table_may_be_a_conditioning_set(tmp_path):
    block = listing(tmp_path, "file_name,text", *each("@.png,x"))
    (tmp_path / "masks").mkdir()
    for name in NAMES:
        (tmp_path / f"masks/{name}.png").write_bytes(half_mask())
    (tmp_path / "masks/all.csv").write_text("\n".join(["file_name", *each("@.png")]))
    linked = {"dataset_type": "conditioning", "conditioning_type": "mask", "source_dataset_id": "win"}
    partner = {"id": "where", "type": "csv", "instance_data_dir": "masks/all.csv", **linked}
    assert len(audit_in(tmp_path, [block, partner]).records[0].masks) == 1
    with pytest.raises(DataError, match=r"\$\[1\].mask_column: belongs to an image set"):
        load(tmp_path, [block, {**partner, "mask_column": "file_name"}])


def refused(root: Path, block: dict) -> list[str]:
    with pytest.raises(DataError) as caught:
        load_datasets([block], root)
    return [f"{problem.path}: {problem.message}" for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"caption_column": "texd"}, "$[0].caption_column: there is no column 'texd'; did you mean 'text'?"),
        ({"image_column": "picture"}, "$[0].image_column: there is no column 'picture'; the columns are: 'file_name'"),
        ({"rejected_column": ["worse"]}, "$[0].rejected_column: there is no column 'worse'"),
        ({"mask_column": "masks"}, "$[0].mask_column: there is no column 'masks'"),
    ],
)
def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path, keys, words):
    block = listing(tmp_path, "file_name,text,rejected_file_name", *each("@.png,x,bad/@.png"))
    (problem,) = problems_in(tmp_path, [{**block, **keys}])
    assert problem.startswith(words) and "the columns are: 'file_name', 'text', 'rejected_file_name'" in problem


@pytest.mark.parametrize("place", ["set", "set/metadata.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path, place):
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_arrays([pa.array(["a.png"])] * 2, ["image"] * 2), tmp_path / "set/metadata.parquet")
    kind = "imagefolder" if place == "set" else "parquet"
    (problem,) = problems_in(tmp_path, [{"id": "win", "type": kind, "instance_data_dir": place}])
    assert "metadata.parquet has two columns 'image'; rename one" in problem


def test_columns_that_cannot_be_found_are_asked_for(tmp_path):
    block = listing(tmp_path, "photo,words", *each("@.png,x"))
    assert [problem.split(":")[0] for problem in problems_in(tmp_path, [block])] == [
        "$[0].image_column",
        "$[0].caption_column",
    ]
    assert len(audit_in(tmp_path, [{**block, "image_column": "photo", "caption_column": "words"}]).records) == 3


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("file_name,text", ["c.png,a,b"], "metadata.csv line 2 has 3 cells, the header has 2"),
        ("file_name,file_name", ["c.png,x"], "has two columns 'file_name'"),
        ("file_name,text", ['c.png,"open'], "cannot be read"),
        ("file_name,text", [",x"], "metadata.csv line 2 has nothing in 'file_name'"),
    ],
)
def test_a_damaged_table_is_told_with_its_line(tmp_path, header, rows, words):
    assert any(words in problem for problem in problems_in(tmp_path, [listing(tmp_path, header, *rows)]))


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"file_name": 3, "text": "x"}', '{"file_name": ["c.png"]}', "\udcff"]
)
def test_a_damaged_line_is_told(tmp_path, line):
    write_image(tmp_path / "set/c.png")
    good = '{"file_name": "c.png", "text": "x"}'
    (tmp_path / "set/metadata.jsonl").write_text(f"{good}\n\n{line}\n", encoding="utf-8", errors="surrogateescape")
    problems = problems_in(tmp_path, [{"id": "win", "type": "imagefolder", "instance_data_dir": "set"}])
    assert len(problems) == 1 and "metadata.jsonl line 3" in problems[0]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"image_column": "a"}, "does nothing for type 'local', only for 'imagefolder', 'csv'"),
        ({"streaming": True}, "does nothing for type 'local', only for 'huggingface'; remove it"),
        ({"caption_strategy": "column"}, "'column' is not for type 'local', which takes 'textfile', 'filename'"),
        ({"type": "csv", "split": "train"}, "does nothing for type 'csv', only for 'huggingface'"),
        ({"type": "csv", "caption_strategy": "textfile"}, "'textfile' is not for type 'csv', which takes 'column'"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(tmp_path, keys, words):
    (problem,) = refused(tmp_path, {"id": "win", "instance_data_dir": "win", **keys})
    assert words in problem


def test_captions_need_no_column(tmp_path):
    block = listing(tmp_path, "file_name", *each("@.png"))
    for strategy, captions in (("filename", list(NAMES)), ("instanceprompt", ["a thing"] * 3)):
        keys = {"caption_strategy": strategy, "instance_prompt": "a thing"}
        assert [each.caption for each in audit_in(tmp_path, [{**block, **keys}]).records] == captions


def test_masks_beside_pictures_of_one_shard_multiply_with_linked_ones(tmp_path):
    blocks = keep_webdataset(tmp_path, samples(["a", "b"]))
    for name in "ab":
        write_mask(tmp_path / f"more/{name}.png", np.full((16, 16), 255))
    linked = {"dataset_type": "conditioning", "conditioning_type": "segmentation", "source_dataset_id": "win"}
    found = audit_in(tmp_path, [*blocks, {"id": "more", "instance_data_dir": "more", **linked}])
    assert [len(record.masks) for record in found.records] == [2, 2]
    assert picture(1) == found.records[0].rejected.asset.read()
