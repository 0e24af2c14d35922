"""Sources behind URLs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from flowhooks.data.storage import Refused, open_place
from tests.data.folders import audit_in, load, problems_in
from tests.data.sources.kept import KEEPERS, samples
from tests.data.sources.test_laws import KEYS, seen

FILES = [name for name in KEEPERS if not name.startswith("huggingface")]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def upload(files: fsspec.AbstractFileSystem, root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/bucket/{path.relative_to(root).as_posix()}", path.read_bytes())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_a_source_behind_a_url_gives_the_same_records(tmp_path, memory, name, protocol):
    kept = tmp_path / "kept"
    kept.mkdir()
    blocks = KEEPERS[name](kept, samples(KEYS))
    upload(memory, kept)
    base = "memory://bucket" if protocol == "memory" else f"file://{kept}"
    remote = [{**block, "instance_data_dir": f"{base}/{block['instance_data_dir']}"} for block in blocks]
    here, there = audit_in(kept, blocks), audit_in(tmp_path, remote)
    assert [seen(record) for record in there.records] == [seen(record) for record in here.records]
    assert load(tmp_path, remote).provides == load(kept, blocks).provides
    asset = there.records[1].rejected.asset
    assert asset.read() == here.records[1].rejected.asset.read() and (protocol in asset.name or protocol == "file")


def test_a_pattern_names_some_files_of_a_folder(tmp_path, memory):
    blocks = KEEPERS["webdataset"](tmp_path, samples(KEYS))
    upload(memory, tmp_path)
    for folder in ("shards", "memory://bucket/shards"):
        found = audit_in(tmp_path, [{**blocks[0], "instance_data_dir": f"{folder}/*1.tar"}])
        assert [record.key for record in found.records] == ["sub/c", "sub/d"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    (problem,) = problems_in(tmp_path, [{"id": "win", "instance_data_dir": "s3://bucket/win"}])
    assert problem.startswith("$[0].instance_data_dir: ") and "not installed" in problem and "s3fs" in problem


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://bucket/nothing", "does not exist"),
        ("nothing://bucket/a", "Protocol not known"),
        ("s3://key:secret@bucket/a", "user name or password"),
        ("simplecache::memory://bucket/a", "chain of URLs"),
        ("zip://a.png::memory://bucket/a.zip", "chain of URLs"),
    ],
)
def test_a_url_that_leads_nowhere_says_so(tmp_path, memory, url, words):
    (problem,) = problems_in(tmp_path, [{"id": "win", "instance_data_dir": url}])
    assert words in problem
    with pytest.raises(Refused):
        open_place(url, tmp_path / "data.json")


def test_urls_stay_as_they_are_in_the_document(tmp_path):
    load(tmp_path, [{"id": "win", "instance_data_dir": "memory://bucket/win"}])
    data = load(tmp_path, [{"id": "win", "type": "csv", "instance_data_dir": "memory://bucket/a.csv"}])
    assert json.loads(json.dumps(data.document()))["datasets"][0]["instance_data_dir"] == "memory://bucket/a.csv"
