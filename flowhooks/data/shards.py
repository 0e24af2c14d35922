"""What a shard of the cache is called, what it holds, and who is writing it. Free of torch.

A shard is a safetensors file of up to 32 entries, named by the hash of their keys. What it holds is therefore settled
before anything is computed: the keys that are missing, in order, are cut into lots, and a lot becomes a shard, written
aside and renamed when whole. A build that was killed leaves whole shards and nothing else that is read. What is then
missing are whole lots, and cutting them in order gives the same lots again; and since a lot is also what a model
computes together, in batches that start with it, every byte comes out as if nothing had happened. For the same reason
processes may share a build without talking: whoever is free takes the next lot that nobody works on.

That somebody works on a lot is known by a lock on the file that is being written. The kernel holds it and drops it with
its holder, however that ends, so there is no such thing as a lock left behind.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import operator
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from flowhooks.reading import MAX_TEXT, Unreadable, parse, refuse_special

ENTRIES = 32
SUFFIX = ".safetensors"
#: Key of a shard's metadata, JSON: what each entry was made from, and under a key of their own the digests of all.
METADATA, DIGESTS = "flowhooks", "digests"
_NAME = re.compile(r"[0-9a-f]{64}")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class DamagedShard(Exception):
    """The shard is there and was cut short, overwritten, or changed on the disk."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """Where an entry lies.

    Args:
        path: its shard.
        head: of a safetensors file that holds this entry alone.
        spans: first byte, and that after the last, of each of its tensors.
        digest: sha256 of all that, in hex; None in a shard of an earlier release.
    """

    path: Path
    head: bytes
    spans: tuple[tuple[int, int], ...]
    digest: str | None = None

    @property
    def nbytes(self) -> int:
        """Of all its tensors."""
        return sum(stop - start for start, stop in self.spans)

    def read(self) -> bytes:
        """The entry as a safetensors file of its own.

        Raises OSError; DamagedShard if it is not what was written.
        """
        file = os.open(self.path, os.O_RDONLY)
        try:
            parts = [os.pread(file, stop - start, start) for start, stop in self.spans]
        finally:
            os.close(file)
        if any(len(part) < stop - start for part, (start, stop) in zip(parts, self.spans, strict=True)):
            raise DamagedShard("is cut off")
        data = b"".join((self.head, *parts))
        if self.digest is not None and hashlib.sha256(data).hexdigest() != self.digest:
            raise DamagedShard("its bytes are not those that were written")
        return data


def entry_key(about: dict[str, object]) -> str:
    """The name of an entry: sha256 of everything that its tensors depend on, hexadecimal."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def shard_name(keys: Iterable[str]) -> str:
    """sha256 of the keys, in whatever order, hexadecimal."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def shard_groups(keys: Sequence[str]) -> list[tuple[str, ...]]:
    """Cut keys into what becomes one shard each. Without some whole lots, the rest is cut the same."""
    return [tuple(keys[at : at + ENTRIES]) for at in range(0, len(keys), ENTRIES)]


def tensor_name(key: str, name: str) -> str:
    """What a tensor of an entry is called in its shard."""
    return f"{key}/{name}"


def shards_in(folder: Path) -> list[Path]:
    """The shards of one kind, sorted; other files are not looked at."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if name.endswith(SUFFIX) and _NAME.fullmatch(name[: -len(SUFFIX)])]


def contents(path: Path) -> dict[str, ShardEntry]:
    """Key -> place, of every entry of a shard, from its header alone.

    Raises OSError; DamagedShard if it is not as long as its header says, or holds other entries than its name does.
    """
    try:
        refuse_special(path)
    except Unreadable as error:
        raise DamagedShard(str(error)) from None
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if length <= size - 8 else b""
    return _places(path, text, size)


def digests(shard: bytes) -> dict[str, str]:
    """Key -> digest, of every entry of a shard that is not yet on the disk."""
    length = int.from_bytes(shard[:8], "little")
    found = {}
    for key, place in _places(None, shard[8 : 8 + length], len(shard)).items():
        parts = (shard[start:stop] for start, stop in place.spans)
        found[key] = hashlib.sha256(b"".join((place.head, *parts))).hexdigest()
    return found


def _places(path: Path | None, text: bytes, size: int) -> dict[str, ShardEntry]:
    """Of a shard's header and its whole size; without a path it is not on the disk yet, and has no name."""
    length = len(text)
    try:
        header = parse(text, most=MAX_TEXT)
        told = header.pop("__metadata__", None) or {}
        written = parse(told.get(METADATA, "{}"), most=MAX_TEXT).get(DIGESTS, {})
        written = {key: str(written[key]) for key in written}
        tensors: dict[str, list[tuple[int, int, str, str, tuple[int, ...]]]] = {}
        for full, about in header.items():
            key, _, name = full.partition("/")
            start, stop = (operator.index(at) for at in about["data_offsets"])
            if not 0 <= start <= stop or not isinstance(about["dtype"], str):
                raise ValueError(full)
            shape = tuple(operator.index(edge) for edge in about["shape"])
            tensors.setdefault(key, []).append((start, stop, name, about["dtype"], shape))
        end = max(stop for each in tensors.values() for _, stop, *_ in each)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedShard("its first bytes are no header of safetensors") from None
    data = 8 + length
    if size != data + end:
        raise DamagedShard(f"has {size:,} of {data + end:,} bytes")
    if path is not None and shard_name(tensors) != path.stem:
        raise DamagedShard("holds other entries than its name says")
    places = {}
    for key, unordered in tensors.items():
        parts = sorted(unordered)
        head = _head(tuple((name, dtype, shape, stop - start) for start, stop, name, dtype, shape in parts))
        spans = tuple((data + start, data + stop) for start, stop, *_ in parts)
        places[key] = ShardEntry(path or Path(), head, spans, written.get(key))
    return places


@lru_cache(maxsize=4096)
def _head(parts: tuple[tuple[str, str, tuple[int, ...], int], ...]) -> bytes:
    # Most entries of a cache look alike, and share one.
    header, at = {}, 0
    for name, dtype, shape, size in parts:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, at + size)}
        at += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


class Claim:
    """The file that one process, and no other, is writing. Gone after the block, unless it was published."""

    def __init__(self, path: Path, file: int):
        self._path = path
        self._file = file
        self._published = False

    def publish(self, data: bytes, target: Path) -> None:
        """Write it whole, then let it appear as `target`. Raises OSError."""
        left = memoryview(data)
        while left:
            left = left[os.write(self._file, left) :]
        # Without it a power cut could leave the new name on a file whose bytes never reached the disk.
        os.fsync(self._file)
        os.replace(self._path, target)
        self._published = True

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published:
            with suppress(OSError):
                self._path.unlink()
        os.close(self._file)


def claim(path: Path, *, wait: bool) -> Claim | None:
    """Take the file `path` for writing; None if another process has it and `wait` is false. Raises OSError."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Who held it until now may have renamed or removed it: then the lock is on a file that is not `path`.
            if _same(file, path):
                os.ftruncate(file, 0)
                return Claim(path, file)
        except BlockingIOError:
            os.close(file)
            return None
        except OSError as error:
            os.close(file)
            if error.errno not in _NO_LOCKS:
                raise
            # Some network disks know no locks. Processes may do the same work there, each in a file of its own.
            path = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
            return Claim(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def sweep(folder: Path) -> None:
    """Remove the files in `folder` that nobody is writing any more."""
    if folder.is_dir():
        for path in folder.iterdir():
            if (left := claim(path, wait=False)) is not None:
                with left:
                    pass


def human_bytes(number: int) -> str:
    """`512 bytes`, `1.5 MB`, `20.0 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number} bytes"


def total_bytes(folder: Path) -> int:
    """Of all files under `folder`; 0 if it is not there."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(at, name)).st_size
    return total
