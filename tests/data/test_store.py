from __future__ import annotations

import errno
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from flowhooks.data.store import DamagedEntry, Store, entry_key
from flowhooks.errors import DataError

KEY = entry_key({"file": "a"})
TENSORS = {"latents": torch.arange(12.0).reshape(3, 4)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def test_an_entry_comes_back_as_it_was(store):
    assert store.read("latents", KEY) is None
    tensors = {"latents": torch.randn(4, 8, 8), "ids": torch.arange(3), "half": torch.randn(2, dtype=torch.bfloat16)}
    store.write("latents", KEY, tensors, {"file": "a"})
    found = store.read("latents", KEY)
    assert found is not None and found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    with safe_open(store.path("latents", KEY), "pt") as file:
        assert file.metadata() == {"flowhooks": '{"file": "a"}'}


def test_a_slice_is_stored_as_itself(store):
    store.write("latents", KEY, {"latents": torch.arange(1000.0).reshape(10, 100)[:, 3]}, {})
    assert store.read("latents", KEY)["latents"].tolist() == [3 + 100 * i for i in range(10)]
    assert store.path("latents", KEY).stat().st_size < 400


def test_a_key_depends_on_every_part_and_not_on_their_order():
    assert entry_key({"a": 1, "b": 2}) == entry_key({"b": 2, "a": 1})
    assert entry_key({"a": 1, "b": 2}) != entry_key({"a": 1, "b": 3})


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_file_cut_short_is_damaged(store, kept):
    store.write("latents", KEY, TENSORS, {})
    path = store.path("latents", KEY)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DamagedEntry, match=KEY):
        store.read("latents", KEY)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_names_the_file_and_what_to_do(store, value):
    store.write("latents", KEY, {"latents": torch.tensor([1.0, value])}, {})
    before = store.path("latents", KEY).read_bytes()
    with pytest.raises(DataError) as caught:
        store.read("latents", KEY)
    (problem,) = caught.value.problems
    assert problem.file == str(store.path("latents", KEY))
    assert "holds NaN or infinity in 'latents'; delete this file, or choose another `cache_dir`" in problem.message
    assert store.path("latents", KEY).read_bytes() == before


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@contextmanager
def largest_file(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_is_one_clear_error_and_leaves_nothing(store):
    with largest_file(1000), pytest.raises(DataError) as caught:
        store.write("latents", KEY, {"latents": torch.zeros(5000)}, {})
    (problem,) = caught.value.problems
    assert problem.file == str(store.path("latents", KEY))
    assert "free some space or point `cache_dir` to a disk that has it" in problem.message
    assert files_under(store.folder) == []
    store.write("latents", KEY, TENSORS, {})
    assert store.read("latents", KEY) is not None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so(store, monkeypatch, number):
    def full(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=os.strerror(number) + ".*free some space"):
        store.write("latents", KEY, TENSORS, {})
    assert files_under(store.folder) == []


def test_a_cache_folder_that_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(DataError, match="point `cache_dir` to a folder that can be written to"):
        Store(tmp_path / "cache").write("latents", KEY, TENSORS, {})
    assert (tmp_path / "cache").read_text() == "mine"


def test_what_a_killed_writer_left_is_never_read_and_swept_later(store):
    store.write("latents", KEY, TENSORS, {})
    left = store.folder / "partial" / f"{KEY}.1.abc"
    left.write_bytes(b"half")
    young = store.folder / "partial" / f"{KEY}.2.def"
    young.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    store.sweep()
    assert not left.exists() and young.exists()
    assert torch.equal(store.read("latents", KEY)["latents"], TENSORS["latents"])
