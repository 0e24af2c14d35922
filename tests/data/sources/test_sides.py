"""Tables of two images and a preference, as Pick-a-Pic is kept: the side that won is the image of the sample."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowhooks.errors import ConfigError, DataError
from tests.data.folders import audit_in, load, problems_in, write_image
from tests.data.sources.kept import picture

COLUMNS = {"image": ["jpg_0", "jpg_1"], "preference": ["label_0", "label_1"], "caption": "caption"}
#: Labels of both sides, and which of them is the preferred one; None where the row makes no pair.
VOTES = [(1.0, 0.0, 0), (0.0, 1.0, 1), (0.5, 0.5, None), (None, None, None), (float("nan"), 1.0, None), (0.0, 1.0, 1)]


def pick_a_pic(root: Path, votes=VOTES, **columns) -> dict:
    """Writes a Parquet file with bytes in its cells; the pictures of row i have seeds 2 i and 2 i + 1."""
    table = {
        "jpg_0": [picture(2 * i) for i in range(len(votes))],
        "jpg_1": [picture(2 * i + 1) for i in range(len(votes))],
        "label_0": [vote[0] for vote in votes],
        "label_1": [vote[1] for vote in votes],
        "caption": [f"prompt {i}" for i in range(len(votes))],
        "scores": [None if vote[0] is None else [vote[0], vote[1]] for vote in votes],
    }
    pq.write_table(pa.table(table), root / "pairs.parquet")
    return {"id": "pairs", "type": "parquet", "instance_data_dir": "pairs.parquet", "columns": {**COLUMNS, **columns}}


@pytest.mark.parametrize("numbers", [["label_0", "label_1"], "scores"], ids=["columns", "list"])
def test_the_side_that_won_is_preferred(tmp_path, numbers):
    block = pick_a_pic(tmp_path, preference=numbers)
    assert "data:rejected" in load(tmp_path, [block]).provides
    found = audit_in(tmp_path, [block])
    expected = [(f"prompt {i}", 2 * i + won, 2 * i + 1 - won) for i, (*_, won) in enumerate(VOTES) if won is not None]
    assert [(r.caption, r.image.asset.read(), r.rejected.asset.read()) for r in found.records] == [
        (caption, picture(won), picture(lost)) for caption, won, lost in expected
    ]
    assert any(
        "3 pairs, of which 2 prefer 'jpg_1' to 'jpg_0'; 1 tie left out; 2 rows without a preference left out" in line
        for line in found.report
    ), found.report


def test_a_complete_block_is_read_again_as_it_is(tmp_path):
    once = load(tmp_path, [pick_a_pic(tmp_path)])
    again = load(tmp_path, once.document()["datasets"])
    assert again.document() == once.document()


def test_csv_and_shards(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        write_image(tmp_path / f"set/{name}.png", seed=seed)
    (tmp_path / "set/votes.csv").write_text("left,right,l,r,text\na.png,b.png,0,1,one\na.png,b.png,2,1,two\n")
    named = {"image": ["left", "right"], "preference": ["l", "r"], "caption": "text"}
    found = audit_in(tmp_path, [{"id": "v", "type": "csv", "instance_data_dir": "set/votes.csv", "columns": named}])
    assert [(r.image.asset.path.name, r.rejected.asset.path.name) for r in found.records] == [
        ("b.png", "a.png"),
        ("a.png", "b.png"),
    ]
    with tarfile.open(tmp_path / "pairs.tar", "w") as shard:
        members = {"1.a.png": picture(0), "1.b.png": picture(1), "1.json": json.dumps({"s": [0, 3], "caption": "x"})}
        for name, content in members.items():
            data = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
    named = {"image": ["a", "b"], "preference": "s"}
    block = {"id": "v", "type": "webdataset", "instance_data_dir": "pairs.tar", "columns": named}
    (record,) = audit_in(tmp_path, [{**block, "caption_strategy": "column"}]).records
    assert (record.image.asset.read(), record.rejected.asset.read()) == (picture(1), picture(0))


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"image": "jpg_0"}, "columns.preference: says which of two images was preferred"),
        ({"image": ["jpg_0", "jpg_1", "caption"]}, "columns.preference: says which of two images was preferred"),
        ({"preference": ["label_0", "label_1", "scores"]}, "columns.preference: names 3 columns"),
        ({"rejected": "jpg_1"}, "columns.rejected: is the side that `preference` does not prefer"),
        ({"preference": ["label_0", "label_3"]}, "columns.preference: there is no column 'label_3'"),
        ({"image": ["jpg_0", "jpg_4"]}, "columns.image: there is no column 'jpg_4'"),
        ({"preference": ["label_0", "caption"]}, "holds 'prompt 0', which is no number"),
        ({"preference": "label_0"}, "holds no list of 2 numbers in 'label_0'"),
    ],
)
def test_what_does_not_fit(tmp_path, columns, message):
    block = pick_a_pic(tmp_path, **columns)
    with pytest.raises((ConfigError, DataError)) as refused:
        audit_in(tmp_path, [block])
    assert message in str(refused.value)


def test_no_pair_at_all(tmp_path):
    block = pick_a_pic(tmp_path, votes=[(0.5, 0.5, None)] * 2)
    assert any("prefers neither side in any row (2 ties left out)" in line for line in problems_in(tmp_path, [block]))


def test_kept_ties_say_so_in_every_sample(tmp_path):
    """Also those of a set without ties: a hook reads the same name in every batch."""
    for seed, side in ((98, "w"), (99, "l")):
        write_image(tmp_path / f"more/x_{side}.png", seed=seed)
    more = {"id": "more", "instance_data_dir": "more", "caption_strategy": "filename", "pair_names": ["*_w", "*_l"]}
    kept = {**pick_a_pic(tmp_path), "ties": "keep"}
    found = audit_in(tmp_path, [kept, more])
    assert [each.columns for each in found.records] == [{"preference": share} for share in (1.0, 1.0, 0.5, 1.0, 1.0)]
    assert "preference" in found.provides and load(tmp_path, [kept, more]).provides == found.given
    assert any("3 pairs, of which 2 prefer 'jpg_1' to 'jpg_0'; 1 tie kept; 2 rows" in line for line in found.report)
    only = {**pick_a_pic(tmp_path, votes=[(0.5, 0.5, None)]), "ties": "keep"}
    assert len(audit_in(tmp_path, [only]).records) == 1
