"""Name, read, lock and publish the files of the cache. Free of torch.

Headers are read by `safe_open` and locks are those of `filelock`. The bytes of an entry are read by ourselves, since
`safe_open` maps the file into memory: if it is cut short or the disk fails after it was opened, the process does not
get an error but ends by SIGBUS. A lock must disappear with its holder, so `filelock` must not fall back to files that
act as locks.

A shard is a safetensors file of up to 32 entries, named by the hash of their keys. Its content is therefore fixed
before anything is computed: the keys that are missing, in order, are cut into lots, and a lot becomes a shard, written
under a temporary name and renamed when complete. A killed build leaves complete shards and nothing else that is read.
What is then missing are whole lots, and cutting them in order gives the same lots again; since a lot is also what a
model computes together, in batches that start with it, the result is the same to the last byte. For the same reason
processes may share a build without communicating: a free process takes the next lot that no other works on.

A lock on a file beside the one that is being written shows that a process works on a lot. The kernel holds it and
releases it when its holder ends, in whatever way, so no lock is ever left behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from flowhooks.reading import MAX_TEXT, Unreadable, parse, refuse_special

ENTRIES = 32
SUFFIX = ".safetensors"
#: Key of a shard's metadata, JSON: the origin of each entry; another key holds the digests of all entries.
METADATA, DIGESTS = "flowhooks", "digests"
_NAME = re.compile(r"[0-9a-f]{64}")
_LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class DamagedShard(Exception):
    """The shard exists and was cut short, overwritten, or changed on the disk."""


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """Says where an entry is.

    Args:
        path: file of its shard.
        head: header of a safetensors file that holds this entry only.
        spans: position of the first byte, and of the byte after the last, of each of its tensors.
        digest: sha256 of header and tensors, in hex; None in a shard of an earlier release.
    """

    path: Path
    head: bytes
    spans: tuple[tuple[int, int], ...]
    digest: str | None = None

    @property
    def nbytes(self) -> int:
        """Return the number of bytes of all its tensors."""
        return sum(stop - start for start, stop in self.spans)

    def read(self) -> bytes:
        """Return the entry as a safetensors file of its own.

        Raises OSError; DamagedShard if its bytes have changed.
        """
        file = os.open(self.path, os.O_RDONLY)
        try:
            parts = [os.pread(file, stop - start, start) for start, stop in self.spans]
        finally:
            os.close(file)
        if any(len(part) < stop - start for part, (start, stop) in zip(parts, self.spans, strict=True)):
            raise DamagedShard("is cut off")
        data = b"".join((self.head, *parts))
        if self.digest is not None and digest_of(data) != self.digest:
            raise DamagedShard("its bytes are not those that were written")
        return data


def digest_of(entry: bytes) -> str:
    """Return the digest that a shard stores of an entry, so that a flipped bit is found: sha256, in hex."""
    return hashlib.sha256(entry).hexdigest()


def entry_key(about: dict[str, object]) -> str:
    """Return the name of an entry: sha256 of everything that its tensors depend on, hexadecimal."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def shard_name(keys: Iterable[str]) -> str:
    """Return the sha256 of the keys, in whatever order, hexadecimal."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def shard_groups(keys: Sequence[str]) -> list[tuple[str, ...]]:
    """Cut keys into groups, each of which becomes one shard. If whole groups are removed, the rest is cut the same."""
    return [tuple(keys[at : at + ENTRIES]) for at in range(0, len(keys), ENTRIES)]


def tensor_name(key: str, name: str) -> str:
    """Return the name of an entry's tensor in its shard."""
    return f"{key}/{name}"


def shards_in(folder: Path) -> list[Path]:
    """Return the shards of one kind, sorted; other files are ignored."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names) if name.endswith(SUFFIX) and _NAME.fullmatch(name[: -len(SUFFIX)])]


def contents(path: Path, *, partial: bool = False) -> dict[str, ShardEntry]:
    """Return key -> place for every entry of a shard, from its header only.

    Args:
        partial: whether it is still being written, so that its name does not match its content yet.

    Raises OSError; DamagedShard if its length does not match its header, or its entries do not match its name.
    """
    try:
        refuse_special(path)
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            # A file without holes: where each tensor lies follows from their order and sizes.
            tensors = [(name, file.get_slice(name)) for name in file.offset_keys()]
            parts = [(name, each.get_dtype(), tuple(each.get_shape())) for name, each in tensors]
        written = parse(metadata.get(METADATA, "{}"), most=MAX_TEXT).get(DIGESTS, {})
        written = {key: str(written[key]) for key in written}
    except (Unreadable, SafetensorError) as error:
        raise DamagedShard(str(error)) from None
    except (ValueError, TypeError, AttributeError):
        raise DamagedShard("its first bytes are no header of a shard") from None
    sizes = [math.prod(shape) * _bits(dtype) // 8 for _, dtype, shape in parts]
    starts = accumulate(sizes, initial=path.stat().st_size - sum(sizes))
    found: dict[str, list[tuple[int, tuple[str, str, tuple[int, ...], int]]]] = {}
    for (full, dtype, shape), size, start in zip(parts, sizes, starts, strict=False):
        key, _, name = full.partition("/")
        found.setdefault(key, []).append((start, (name, dtype, shape, size)))
    if not partial and shard_name(found) != path.stem:
        raise DamagedShard("holds other entries than its name says")
    return {
        key: ShardEntry(
            path,
            _head(tuple(part for _, part in own)),
            tuple((start, start + size) for start, (*_, size) in own),
            written.get(key),
        )
        for key, own in found.items()
    }


def _bits(dtype: str) -> int:
    """Return the size of one number in bits: 32 for `F32`, 8 for `F8_E4M3` and `BOOL`."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


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
    """Gives one process the exclusive right to write a shard. Whatever it has not published is removed after the block.

    Args:
        path: the file to write before publishing it.
        lock: lock that other processes wait for; None on a disk without locks.
    """

    def __init__(self, path: Path, lock: FileLock | None):
        self.path = path
        self._lock = lock
        self._published = False

    def publish(self, target: Path) -> None:
        """Rename the file at `path` to `target`. Raises OSError."""
        with self.path.open("rb") as file:
            # Without it a power cut could leave the new name on a file whose bytes never reached the disk.
            os.fsync(file.fileno())
        os.replace(self.path, target)
        self._published = True
        self._release()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._published:
            with suppress(OSError):
                self.path.unlink()
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            # Removed before it is released: filelock checks whether the file it locked still exists, else tries again.
            with suppress(OSError):
                os.unlink(self._lock.lock_file)
            self._lock.release()


def claim(path: Path, *, wait: bool) -> Claim | None:
    """Claim the file `path` for writing; None if another process has it and `wait` is false. Raises OSError."""
    # A soft lock is a file, and outlives a process that is killed.
    lock = FileLock(f"{path}{_LOCK}", fallback_to_soft=False)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        with suppress(OSError):
            os.unlink(lock.lock_file)
        # Some network disks have no locks. Processes may do the same work there, each in a file of its own.
        return Claim(path.with_name(f"{path.name}.{uuid.uuid4().hex}"), None)
    return Claim(path, lock)


def sweep(folder: Path) -> None:
    """Remove the files in `folder` that no process is writing any more."""
    if folder.is_dir():
        for name in {path.name.removesuffix(_LOCK) for path in folder.iterdir()}:
            if (left := claim(folder / name, wait=False)) is not None:
                with left:
                    pass


def human_bytes(number: int) -> str:
    """Return a size such as `512 bytes`, `1.5 MB`, `20.0 GB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number} bytes"


def total_bytes(folder: Path) -> int:
    """Return the bytes of all files under `folder`; 0 if it does not exist."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(at, name)).st_size
    return total
