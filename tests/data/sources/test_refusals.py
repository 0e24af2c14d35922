"""What a data set may not make a run read, or do: refused by name, whatever the source."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowhooks.data import assets
from flowhooks.data.sources import parquet
from tests.data.folders import audit_in, problems_in, write_image
from tests.data.sources.kept import KEEPERS, picture, samples
from tests.data.sources.test_laws import home  # noqa: F401
from tests.data.test_inspection import bomb

PATHS = {
    "../secret.png": "leads out of the data set folder",
    "sub/../../secret.png": "leads out of the data set folder",
    "ABSOLUTE": "is an absolute path",
    "C:\\secret.png": "is a Windows path",
    "C:/secret.png": "is a Windows path",
    "..\\secret.png": "is a Windows path",
    "file:///secret.png": "is a URL",
    "https://example.org/a.png": "is a URL",
    "link.png": "outside the data set folder",
    "linked/secret.png": "outside the data set folder",
    "a\0.png": "zero byte",
    "sub": "not a regular file",
    "gone.png": "there is no such file",
}


def table(kind: str, folder: Path, name: str) -> dict[str, str]:
    """A data set whose second row names a picture `name`, as image or as rejected side."""
    rows = [("a.png", "b.png"), (name, "b.png"), ("b.png", name)]
    if kind == "csv":
        lines = ["file_name,rejected_file_name,caption", *(f'"{image}","{worse}",x' for image, worse in rows)]
        (folder / "data.csv").write_text("\n".join(lines))
        return {"type": "csv", "instance_data_dir": "set/data.csv"}
    if kind == "jsonl":
        lines = [json.dumps({"file_name": each[0], "rejected_file_name": each[1], "text": "x"}) for each in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        return {"type": "imagefolder", "instance_data_dir": "set"}
    image, worse = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": image, "rejected": worse, "text": ["x"] * 3}), folder / "data.parquet")
    return {"type": "parquet", "instance_data_dir": "set/data.parquet"}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", PATHS)
def test_paths_that_leave_the_data_set_are_refused(tmp_path, kind, name):
    secret = write_image(tmp_path / "secret.png")
    folder = tmp_path / "set"
    for i, each in enumerate(("a.png", "b.png", "sub/c.png")):
        write_image(folder / each, seed=i + 1)
    (folder / "link.png").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    problems = problems_in(
        tmp_path, [{"id": "win", **table(kind, folder, str(secret) if name == "ABSOLUTE" else name)}]
    )
    told = [each for each in problems if "files that cannot be used (1)" in each]
    assert [each.split(":")[0] for each in told] == ["$[0].instance_data_dir", "$[0].rejected_column"]
    assert all(PATHS[name] in each for each in told), told
    assert ("line 3" in told[0] or "line 2" in told[0] or "row 1" in told[0]) and "secret.png: " not in told[0]


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("field", ["image", "rejected", "mask"])
def test_a_decompression_bomb_is_refused_in_every_source(tmp_path, keeper, field):
    kept = samples(["a", "b", "c"])
    object.__setattr__(kept[1], field, bomb(40_000))
    (problem,) = problems_in(tmp_path, KEEPERS[keeper](tmp_path, kept))
    assert "files that cannot be used (1)" in problem and "decompression bomb" in problem


@pytest.mark.parametrize("keeper", KEEPERS)
def test_more_bytes_than_any_picture_needs_are_not_read(tmp_path, keeper, monkeypatch):
    kept = samples(["a", "b", "c"])
    monkeypatch.setattr(assets, "MAX_BYTES", 2000)
    object.__setattr__(kept[1], "image", picture(5, (64, 64)))
    (problem,) = problems_in(tmp_path, [{**each, "resolution": 16} for each in KEEPERS[keeper](tmp_path, kept)])
    assert "more than 2,000 is refused" in problem


def test_a_group_of_rows_that_unpacks_to_too_much_is_not_decoded(tmp_path, monkeypatch):
    blocks = KEEPERS["parquet"](tmp_path, samples(["a", "b", "c"]))
    monkeypatch.setattr(parquet, "MAX_GROUP_BYTES", 1000)
    (problem,) = problems_in(tmp_path, blocks)
    assert "in one group of rows, more than 1,000" in problem and "row_group_size=100" in problem


def test_pipes_and_devices_are_not_opened(tmp_path):
    import os

    (tmp_path / "set").mkdir()
    os.mkfifo(tmp_path / "set/a.png")
    (tmp_path / "set/data.csv").write_text("file_name,caption\na.png,x\n")
    (problem,) = problems_in(tmp_path, [{"id": "win", "type": "csv", "instance_data_dir": "set/data.csv"}])
    assert "not a regular file" in problem


MEMBERS = {
    "../000.png": "leads out",
    "/000.png": "absolute",
    "sub/../../000.png": "leads out",
    "C:\\000.png": "Windows",
}


def shard(path: Path, *extra: tarfile.TarInfo) -> list[dict[str, str]]:
    with tarfile.open(path, "w") as members:
        for name, data in (("a.png", picture(1)), ("a.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            members.addfile(info, io.BytesIO(data))
        for info in extra:
            members.addfile(info, io.BytesIO(bytes(info.size)))
    return [{"id": "win", "type": "webdataset", "instance_data_dir": path.name}]


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_would_leave_a_folder_are_refused(tmp_path, name):
    (problem,) = problems_in(tmp_path, shard(tmp_path / "data.tar", tarfile.TarInfo(name)))
    assert "members that are not read (1)" in problem and MEMBERS[name] in problem


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_files_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("b.png")
    info.type, info.linkname = kind, "/etc/passwd"
    (problem,) = problems_in(tmp_path, shard(tmp_path / "data.tar", info))
    assert "members that are not read (1)" in problem and "b.png" in problem and "not a regular file" in problem


def test_nothing_of_a_shard_is_unpacked(tmp_path):
    blocks = shard(tmp_path / "data.tar")
    audit_in(tmp_path, blocks)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data.json", "data.tar"]


def test_a_shard_cut_off_or_compressed_is_refused(tmp_path):
    whole = tmp_path / "data.tar"
    blocks = shard(whole)
    content = whole.read_bytes()
    whole.write_bytes(content[:700])
    assert problems_in(tmp_path, blocks)
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as packed:
        packed.add(whole, "a.png")
    (problem,) = problems_in(tmp_path, [{**blocks[0], "instance_data_dir": "packed.tar"}])
    assert "compressed, or damaged" in problem


def test_a_saved_data_set_names_no_file_outside_itself(tmp_path, home):  # noqa: F811
    secret = write_image(tmp_path / "secret.png")
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = pa.array([{"bytes": None, "path": str(secret)}], struct)
    made = datasets.Dataset(pa.table({"image": cells, "text": ["x"]}))
    made.save_to_disk(tmp_path / "saved")
    (problem,) = problems_in(tmp_path, [{"id": "win", "type": "huggingface", "instance_data_dir": "saved"}])
    assert "lies outside the data set" in problem


def test_code_of_a_data_set_is_not_run(tmp_path, home):  # noqa: F811
    (tmp_path / "repository").mkdir()
    ran = tmp_path / "ran"
    (tmp_path / "repository/repository.py").write_text(f"open({str(ran)!r}, 'w')")
    assert problems_in(tmp_path, [{"id": "win", "type": "huggingface", "instance_data_dir": "repository"}])
    assert not ran.exists()
