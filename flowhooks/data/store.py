"""Cache tensors on disk, each named by a digest of its origin. The format is in flowhooks.data.shards."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from flowhooks.data.shards import (
    DIGESTS,
    METADATA,
    SUFFIX,
    Claim,
    DamagedShard,
    ShardEntry,
    claim,
    contents,
    digest_of,
    shard_name,
    shards_in,
    sweep,
    tensor_name,
)
from flowhooks.errors import DataError, FlowhooksWarning, Problem
from flowhooks.files import is_full

REMEDY = (
    "delete this file, or start with `--rebuild-cache`, and what it holds is made again from the images and captions"
)
IN_MEMORY_BYTES = 512 * 2**20
#: Bytes of a run's entries that are compared with their digests before the run starts; the rest is when it is read.
CHECKED_BYTES = 4 * 2**30
Entry = Mapping[str, Tensor]


class Store:
    """Reads and writes shards under `folder/<kind>/<name>.safetensors`. Any number of processes may do so at once.

    All methods raise DataError for a file that cannot be read or written.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, kind: str, name: str) -> Path:
        """Return the path of a shard, whether it exists or not."""
        return self.folder / kind / f"{name}{SUFFIX}"

    def find(self, kind: str, wanted: Collection[str], *, check: int = 0) -> dict[str, ShardEntry]:
        """Return key -> place for the entries of `wanted` that exist. Only headers are read, and the first `check`
        bytes of these entries, which are compared with their digests.

        A damaged shard is removed with a warning that names it.
        """
        places: dict[str, ShardEntry] = {}
        for path in shards_in(self.folder / kind):
            found = {key: place for key, place in self._contents(kind, path).items() if key in wanted}
            size = sum(place.nbytes for place in found.values())
            if found and size <= check:
                check -= size
                found = self._sound(kind, path, set(found))
            for key, place in found.items():
                places.setdefault(key, place)
        return places

    def claim(self, kind: str, name: str, *, wait: bool) -> Claim | None:
        """Claim the right to write this shard; None if another process has it and `wait` is false."""
        path = self.folder / "partial" / f"{kind}.{name}"
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            return claim(path, wait=wait)

    def write(self, mine: Claim, kind: str, entries: Mapping[str, Entry], about: Mapping[str, Any]) -> None:
        """Write the shard of these entries; `about` of each goes into its metadata, for people."""
        # A copy each: safetensors refuses tensors that share memory, and entries may.
        named = {
            tensor_name(key, name): tensor.clone(memory_format=torch.contiguous_format)
            for key, tensors in entries.items()
            for name, tensor in tensors.items()
        }
        data = save(named)
        path = self.path(kind, shard_name(entries))
        with _writing(path, len(data)):
            # Written twice: the digests cover the bytes in the order in which safetensors stores them.
            mine.path.write_bytes(data)
            digests = {key: digest_of(each.read()) for key, each in contents(mine.path, partial=True).items()}
            # One key only: safetensors writes several in any order, and a shard must always come out the same.
            described = {key: about[key] for key in entries}
            header = {**described, DIGESTS: {key: digests[key] for key in sorted(digests)}}
            mine.path.write_bytes(save(named, {METADATA: json.dumps(header)}))
            path.parent.mkdir(parents=True, exist_ok=True)
            mine.publish(path)

    def sweep(self) -> None:
        """Remove what killed processes left half-written."""
        with _writing(self.folder):
            sweep(self.folder / "partial")

    def replace(self, rebuilt: Store) -> None:
        """Move every shard of another store here, replacing all shards that hold one of its entries."""
        with _writing(rebuilt.folder):
            kinds = sorted(path.name for path in rebuilt.folder.glob("*/"))
        for kind in kinds:
            here, new = self.folder / kind, shards_in(rebuilt.folder / kind)
            names = {path.name for path in new}
            fresh = {key for path in new for key in rebuilt._contents(kind, path)}
            with _writing(here):
                # The old ones are removed first: a process killed in between must not leave both. Several may do this.
                for path in shards_in(here):
                    if path.name not in names and not fresh.isdisjoint(self._contents(kind, path)):
                        path.unlink(missing_ok=True)
                here.mkdir(parents=True, exist_ok=True)
                for path in new:
                    with suppress(FileNotFoundError):
                        os.replace(path, here / path.name)
            with suppress(OSError):  # not empty: somebody else is rebuilding too
                (rebuilt.folder / kind).rmdir()
        with suppress(OSError):
            rebuilt.folder.rmdir()

    def _contents(self, kind: str, path: Path) -> dict[str, ShardEntry]:
        return self._whole(kind, path, contents)

    def _sound(self, kind: str, path: Path, wanted: Collection[str]) -> dict[str, ShardEntry]:
        """Return the wanted entries of a shard, each compared with its digest."""

        def look(path: Path) -> dict[str, ShardEntry]:
            places = {key: place for key, place in contents(path).items() if key in wanted}
            for place in places.values():
                place.read()
            return places

        return self._whole(kind, path, look)

    def _whole(self, kind: str, path: Path, look: Callable[[Path], dict[str, ShardEntry]]) -> dict[str, ShardEntry]:
        """Return what `look` finds in a shard; nothing for a damaged one, which is reported and removed."""
        with _reading(path):
            try:
                return look(path)
            except FileNotFoundError:
                return {}
            except DamagedShard:
                pass
        # Another process may be making it again: look once more when none works on it.
        mine = self.claim(kind, path.stem, wait=True)
        with mine or nullcontext(), _writing(path):
            try:
                return look(path)
            except FileNotFoundError:
                return {}
            except DamagedShard as error:
                message = f"the cache file {path} is damaged ({error}); it is made again"
                warnings.warn(message, FlowhooksWarning, stacklevel=4)
                path.unlink()
                return {}


class Entries:
    """Reads the cache entries of one run. As many as fit into `limit` bytes are read at once and stay in memory, shared
    with the workers of a loader.

    Args:
        places: kind -> key -> its place.

    Raises DataError naming every shard that holds NaN.
    """

    def __init__(self, places: Mapping[str, Mapping[str, ShardEntry]], limit: int = IN_MEMORY_BYTES):
        self.places = places
        self._kept: dict[tuple[str, str], dict[str, Tensor]] = {}
        problems: dict[str | None, Problem] = {}
        for kind, key, place in ((kind, *each) for kind, of_kind in places.items() for each in of_kind.items()):
            limit -= place.nbytes
            if limit < 0:
                break
            try:
                self._kept[kind, key] = _read(place)
            except DataError as error:
                problems |= {problem.file: problem for problem in error.problems}
        if problems:
            raise DataError(list(problems.values()))

    @property
    def nbytes(self) -> int:
        """Return the number of bytes of all entries."""
        return sum(place.nbytes for kind in self.places.values() for place in kind.values())

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def read(self, kind: str, key: str) -> dict[str, Tensor]:
        """Return the tensors of an entry; they must not be changed.

        Raises DataError naming the shard if it was removed or damaged since the run began, or holds NaN.
        """
        if (kept := self._kept.get((kind, key))) is not None:
            return kept
        place = self.places[kind].get(key)
        if place is None:
            raise DataError(f"{kind} were removed from the cache while the run was starting; start again")
        return _read(place)


def _read(place: ShardEntry) -> dict[str, Tensor]:
    with _reading(place.path):
        try:
            tensors = load(place.read())
        except FileNotFoundError:
            message = "was removed during the run; start again with `--resume latest` and it is made again"
            raise DataError(Problem(message, str(place.path))) from None
        except (DamagedShard, SafetensorError) as error:
            # Not even its size and header can be trusted: if it were looked up again, it would be read again.
            with suppress(OSError):
                place.path.unlink()
            message = f"was damaged during the run ({error}); start again with `--resume latest` and it is made again"
            raise DataError(Problem(message, str(place.path))) from None
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        names = ", ".join(map(repr, broken))
        raise DataError(Problem(f"holds NaN or infinity in {names}; {REMEDY}", str(place.path)))
    return tensors


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(Problem(f"cannot be read ({error.strerror})", str(path))) from None


@contextmanager
def _writing(path: Path, size: int = 0) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full(error):
            message = (
                f"cannot be written: {error.strerror} ({size:,} bytes); free some space or point `cache_dir` to a disk "
                "that has it, then start again: what is cached so far is kept"
            )
        else:
            message = f"cannot be written ({error.strerror}); point `cache_dir` to a folder that can be written to"
        raise DataError(Problem(message, str(path))) from None


def is_finite(tensor: Tensor) -> bool:
    """Return whether no element is NaN or infinite."""
    # x - x is 0 for a number and NaN for NaN or infinity; several times quicker on small tensors than isfinite.
    return not tensor.is_floating_point() or float((tensor - tensor).sum()) == 0
