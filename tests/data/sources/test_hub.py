"""Data sets of Hugging Face: which rows are read, and what is kept of a stream."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from flowhooks.data import audit
from flowhooks.errors import DataError
from tests.data.folders import load
from tests.data.sources.kept import keep_saved_splits, picture, samples


def repository(root: Path, rows: int, broken: int | None = None) -> dict[str, Any]:
    """Data files as on the Hub, the image of one row cut off."""
    shutil.rmtree(root / "repository", ignore_errors=True)
    (root / "repository").mkdir()
    cells = [{"bytes": picture(i)[:60] if i == broken else picture(i), "path": f"{i:03}.png"} for i in range(rows)]
    table = pa.table({"image": cells, "text": [f"photo {i}" for i in range(rows)]})
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset(table).cast(features).to_parquet(root / "repository/train.parquet")
    return {"id": "photos", "type": "huggingface", "instance_data_dir": "repository"}


def keys(root: Path, block: dict[str, Any]) -> list[str]:
    return [record.key for record in audit(load(root, [block]), root / "cache").records]


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_rows_are_used_and_those_behind_are_not_looked_at(tmp_path, streaming):
    block = {**repository(tmp_path, 5, broken=3), "streaming": streaming}
    assert keys(tmp_path, {**block, "max_samples": 3}) == ["000", "001", "002"]
    with pytest.raises(DataError, match="files that cannot be used \\(1\\): .*row 3"):
        keys(tmp_path, block)
    assert keys(tmp_path, {**repository(tmp_path, 5), "max_samples": 50}) == ["000", "001", "002", "003", "004"]


def test_a_stream_is_kept_until_something_changes(tmp_path):
    block = {**repository(tmp_path, 3), "streaming": True}
    assert len(keys(tmp_path, block)) == 3
    (kept,) = (tmp_path / "cache/streams").iterdir()
    written = (kept / "rows.parquet").stat().st_mtime_ns
    assert len(keys(tmp_path, block)) == 3 and (kept / "rows.parquet").stat().st_mtime_ns == written
    assert len(keys(tmp_path, {**block, "max_samples": 2})) == 2
    assert len(keys(tmp_path, {**repository(tmp_path, 4), "streaming": True})) == 4
    assert len(list((tmp_path / "cache/streams").iterdir())) == 3


def test_of_a_stream_that_breaks_off_nothing_is_kept(tmp_path, monkeypatch):
    from flowhooks.data.sources import streams

    block = {**repository(tmp_path, 3), "streaming": True}
    with monkeypatch.context() as patched:
        patched.setattr(streams, "refuse_large", lambda size: (_ for _ in ()).throw(OSError(5, "the line was cut")))
        with pytest.raises(DataError, match="row 0, 'image' cannot be read \\(the line was cut\\)"):
            keys(tmp_path, block)
    assert not list((tmp_path / "cache/streams").iterdir())
    assert len(keys(tmp_path, block)) == 3


def test_a_folder_of_images_is_loaded_as_the_hub_would(tmp_path):
    (tmp_path / "repository").mkdir()
    for i in range(3):
        (tmp_path / f"repository/{i}.png").write_bytes(picture(i))
    lines = "\n".join(f'{{"file_name": "{i}.png", "text": "photo {i}"}}' for i in range(3))
    (tmp_path / "repository/metadata.jsonl").write_text(lines)
    block = {"id": "photos", "type": "huggingface", "instance_data_dir": "repository"}
    for streaming in (False, True):
        found = audit(load(tmp_path, [{**block, "streaming": streaming}]), tmp_path / "cache")
        assert [record.caption for record in found.records] == ["photo 0", "photo 1", "photo 2"]
        assert found.records[1].image.asset.read() == picture(1)


@pytest.mark.parametrize(
    ("keys_", "words"),
    [
        ({"split": "bad"}, "has no split 'bad'; name one of 'good', 'train' in `split`"),
        ({"split": "good", "streaming": True}, "`save_to_disk`; remove it"),
        ({"split": "good", "revision": "main"}, "`save_to_disk`; remove it"),
        ({"instance_data_dir": "owner/name"}, "the data set 'owner/name' of the Hub cannot be loaded"),
        ({"instance_data_dir": "./owner/name"}, "does not exist, or is no folder"),
        ({"instance_data_dir": "s3://bucket/name"}, "is a URL; type 'huggingface' takes an id of the Hub or a folder"),
    ],
)
def test_what_cannot_be_loaded_says_why(tmp_path, keys_, words):
    (block,) = keep_saved_splits(tmp_path, samples(["a"]))
    with pytest.raises(DataError) as caught:
        keys(tmp_path, {**block, **keys_})
    assert words in str(caught.value)


def test_tokens_of_a_message_are_hidden(tmp_path, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("401 for Bearer hf_0123456789ABCDEFGHIJ0123456789ABCD")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError) as caught:
        keys(tmp_path, {"id": "photos", "type": "huggingface", "instance_data_dir": "owner/name"})
    assert "Bearer ***" in str(caught.value) and "hf_0" not in str(caught.value)
