from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.data.shards import ENTRIES, entry_key, shard_groups, shard_name, total_bytes
from flowhooks.data.store import Entries, Store
from flowhooks.errors import DataError, FlowhooksWarning

KEY, OTHER = entry_key({"file": "a"}), entry_key({"file": "b"})
TENSORS = {"latents": torch.arange(12.0).reshape(3, 4)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def write(store, entries, about=None) -> Path:
    with store.claim("latents", shard_name(entries), wait=False) as claim:
        store.write(claim, "latents", entries, about or dict.fromkeys(entries, {}))
    return store.path("latents", shard_name(entries))


def read(store, key=KEY):
    places = store.find("latents", {key})
    return Entries({"latents": places}).read("latents", key) if places else None


def test_entries_come_back_as_they_were(store):
    assert read(store) is None
    kinds = {"latents": torch.randn(4, 8, 8), "ids": torch.arange(3), "half": torch.randn(2, dtype=torch.bfloat16)}
    other = {"latents": torch.randn(2, 8), "mask": torch.tensor([True, False, True]), "one": torch.tensor(2.5)}
    path = write(store, {KEY: kinds, OTHER: other}, {KEY: {"file": "a"}, OTHER: {"file": "b"}})
    for key, tensors in ((KEY, kinds), (OTHER, other)):
        found = read(store, key)
        assert found is not None and found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
    with safe_open(path, "pt") as file:
        assert f'"{KEY}": {{"file": "a"}}' in file.metadata()["flowhooks"]
    assert store.find("latents", {KEY, "c" * 64}).keys() == {KEY}
    assert Entries({"latents": store.find("latents", {KEY})}).nbytes == 4 * 8 * 8 * 4 + 3 * 8 + 2 * 2


def test_a_slice_is_stored_as_itself(store):
    path = write(store, {KEY: {"latents": torch.arange(1000.0).reshape(10, 100)[:, 3]}})
    assert read(store)["latents"].tolist() == [3 + 100 * i for i in range(10)]
    assert path.stat().st_size < 500


def test_a_key_depends_on_every_part_and_not_on_their_order():
    assert entry_key({"a": 1, "b": 2}) == entry_key({"b": 2, "a": 1})
    assert entry_key({"a": 1, "b": 2}) != entry_key({"a": 1, "b": 3})


def test_without_some_lots_the_rest_is_cut_the_same():
    keys = [f"{i:03}" for i in range(5 * ENTRIES + 3)]
    whole = shard_groups(keys)
    assert [len(each) for each in whole] == [ENTRIES] * 5 + [3]
    for gone in ({0}, {1, 3}, {0, 2, 4}, {5}):
        rest = [lot for i, lot in enumerate(whole) if i not in gone]
        assert shard_groups([key for lot in rest for key in lot]) == rest


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_a_shard_cut_short_is_removed_with_a_warning(store, kept):
    path = write(store, {KEY: TENSORS})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.warns(UserWarning, match=f"{path} is damaged .*; it is made again"):
        assert store.find("latents", {KEY}) == {}
    assert not path.exists() and files_under(store.folder) == []


def test_a_shard_overwritten_by_another_is_damaged(store):
    path, other = write(store, {KEY: TENSORS}), write(store, {OTHER: TENSORS})
    path.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="holds other entries than its name says"):
        assert store.find("latents", {KEY, OTHER}).keys() == {OTHER}


def test_files_of_others_in_the_cache_are_left_alone(store):
    write(store, {KEY: TENSORS})
    mine = [store.folder / "latents/mine.safetensors", store.folder / f"latents/{KEY[:2]}/{KEY}.safetensors"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no shard")
    assert store.find("latents", {KEY}).keys() == {KEY}
    assert all(path.read_bytes() == b"no shard" for path in mine)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_names_the_file_and_what_to_do(store, value):
    path = write(store, {KEY: {"latents": torch.tensor([1.0, value])}})
    with pytest.raises(DataError) as caught:
        read(store)
    (problem,) = caught.value.problems
    assert problem.file == str(path)
    assert "holds NaN or infinity in 'latents'; delete this file, or start with `--rebuild-cache`" in problem.message


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
        write(store, {KEY: {"latents": torch.zeros(5000)}})
    (problem,) = caught.value.problems
    assert problem.file == str(store.path("latents", shard_name([KEY])))
    assert "free some space or point `cache_dir` to a disk that has it" in problem.message
    assert files_under(store.folder) == []
    write(store, {KEY: TENSORS})
    assert read(store) is not None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_so(store, monkeypatch, number):
    def full(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=os.strerror(number) + ".*free some space"):
        write(store, {KEY: TENSORS})
    assert files_under(store.folder) == []


def test_a_cache_folder_that_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(DataError, match="point `cache_dir` to a folder that can be written to"):
        write(Store(tmp_path / "cache"), {KEY: TENSORS})
    assert (tmp_path / "cache").read_text() == "mine"


def test_one_writer_at_a_time_and_the_next_gets_a_file_of_its_own(store):
    name = shard_name([KEY])
    first = store.claim("latents", name, wait=False)
    with first:
        assert store.claim("latents", name, wait=False) is None
        store.sweep()
        assert files_under(store.folder)
        store.write(first, "latents", {KEY: TENSORS}, {KEY: {}})
        # With the shard in its place, the lock is let go.
        with store.claim("latents", name, wait=False) as second:
            assert second is not None
    assert files_under(store.folder) == [store.path("latents", name)]
    assert torch.equal(read(store)["latents"], TENSORS["latents"])


def test_what_a_killed_writer_left_is_never_read_and_swept(store):
    write(store, {KEY: TENSORS})
    left = store.folder / "partial" / f"latents.{shard_name([OTHER])}"
    left.write_bytes(b"half")
    assert store.find("latents", {OTHER}) == {}
    store.sweep()
    assert not left.exists()


def test_a_disk_without_locks_gives_every_writer_its_own_file(store, monkeypatch):
    def refused(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refused)
    name = shard_name([KEY])
    with store.claim("latents", name, wait=False) as one, store.claim("latents", name, wait=False) as other:
        assert one is not None and other is not None
        store.write(one, "latents", {KEY: TENSORS}, {KEY: {}})
        store.write(other, "latents", {KEY: TENSORS}, {KEY: {}})
    assert torch.equal(read(store)["latents"], TENSORS["latents"])


def _take_and_die(folder: Path, name: str) -> None:
    Store(folder).claim("latents", name, wait=True)
    os._exit(9)


def test_the_claim_of_a_process_that_died_is_free(store):
    name = shard_name([KEY])
    child = multiprocessing.get_context("forkserver").Process(target=_take_and_die, args=(store.folder, name))
    child.start()
    child.join()
    assert child.exitcode == 9 and files_under(store.folder)
    with store.claim("latents", name, wait=False) as claim:
        assert claim is not None


def test_what_was_rebuilt_replaces_every_shard_that_holds_it(store):
    third = entry_key({"file": "c"})
    both, alone = write(store, {KEY: TENSORS, OTHER: TENSORS}), write(store, {third: TENSORS})
    rebuilt = Store(store.folder / "rebuilding")
    new = {"latents": -TENSORS["latents"]}
    write(rebuilt, {KEY: new})
    store.replace(rebuilt)
    assert not both.exists() and alone.exists() and not rebuilt.folder.exists()
    assert torch.equal(read(store)["latents"], new["latents"])
    assert store.find("latents", {KEY, OTHER, third}).keys() == {KEY, third}
    store.replace(rebuilt)
    assert read(store) is not None


def test_a_shard_is_an_ordinary_safetensors_file(store):
    path = write(store, {KEY: TENSORS})
    assert load_file(path).keys() == {f"{KEY}/latents"}
    save_file(load_file(path), path)
    assert torch.equal(read(store)["latents"], TENSORS["latents"])
    assert total_bytes(store.folder) == path.stat().st_size
    assert total_bytes(store.folder / "nowhere") == 0


def test_entries_beyond_the_limit_are_read_again(store):
    write(store, {key: TENSORS for key in (KEY, OTHER)})
    entries = Entries({"latents": store.find("latents", {KEY, OTHER})}, limit=TENSORS["latents"].nbytes)
    first = {key: entries.read("latents", key)["latents"] for key in (KEY, OTHER)}
    again = {key: entries.read("latents", key)["latents"] for key in (KEY, OTHER)}
    assert [again[key] is first[key] for key in sorted((KEY, OTHER))] == [True, False]
    assert torch.equal(again[KEY], first[KEY]) and torch.equal(again[OTHER], first[OTHER])


@pytest.mark.parametrize("where", ["data", "shape", "dtype", "digest"])
def test_a_flipped_bit_is_told_and_the_shard_removed(store, where):
    entries = {KEY: {"latents": torch.arange(8.0), "ids": torch.arange(4)}, OTHER: {"latents": torch.ones(8)}}
    path = write(store, entries)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    at = {
        "data": len(whole) - 3,
        "shape": whole.index(b'"shape":[') + len(b'"shape":['),
        "dtype": whole.index(b'"F32"') + 1,
        "digest": whole.index(b"digests") + 100,
    }[where]
    assert (at > 8 + length) == (where == "data")
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.warns(FlowhooksWarning, match=f"the cache file {path} is damaged .*; it is made again"):
        assert store.find("latents", {KEY, OTHER}, check=10**6) == {}
    assert not path.exists()


def test_what_is_beyond_the_limit_is_compared_when_it_is_read(store):
    path = write(store, {KEY: TENSORS})
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)
    places = store.find("latents", {KEY}, check=TENSORS["latents"].nbytes - 1)
    with pytest.raises(DataError, match=r"was damaged during the run \(its bytes are not those.*`--resume latest`"):
        Entries({"latents": places}, limit=0).read("latents", KEY)
    assert not path.exists(), "so that it is made again"


def test_a_shard_of_an_earlier_release_has_no_digests_and_is_read(store):
    path = write(store, {KEY: TENSORS})
    save_file(load_file(path), path, {"flowhooks": "{}"})
    assert torch.equal(read(store)["latents"], TENSORS["latents"])
    assert store.find("latents", {KEY}, check=10**6).keys() == {KEY}


def test_a_shard_that_is_cut_while_it_is_read_is_told(store):
    """Mapped into memory, as `safe_open` does, this would end the process by a signal."""
    path = write(store, {KEY: {"latents": torch.zeros(50_000)}, OTHER: TENSORS})
    places = store.find("latents", {KEY, OTHER})
    os.truncate(path, 8000)
    with pytest.raises(DataError, match=r"was damaged during the run \(is cut off\)"):
        Entries({"latents": places}, limit=0).read("latents", KEY)


def _take_turns(folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(40):
        claim = Store(folder).claim("latents", shard_name([KEY]), wait=draw.random() < 0.5)
        if claim is None:
            continue
        with claim:
            os.close(os.open(folder / "alone", os.O_CREAT | os.O_EXCL))
            os.unlink(folder / "alone")
            if draw.random() < 0.5:
                claim.path.write_bytes(b"1")
                claim.publish(folder / "written")


def test_no_two_of_many_writers_have_one_claim_and_nothing_is_left(store):
    """The file of a lock goes with it, and who waited for it must not hold what nobody else can see. Threads lock each
    other out as processes do: each claim opens the file anew."""
    store.folder.mkdir()
    with ThreadPoolExecutor(6) as pool:
        for each in [pool.submit(_take_turns, store.folder, seed) for seed in range(6)]:
            each.result()
    assert files_under(store.folder) == [store.folder / "written"]
