"""The files of the cache: their names and contents, and who is writing one. Free of torch.

Headers are read by `safe_open` and locks are those of `filelock`. The bytes of an entry are read by ourselves, since
`safe_open` maps the file into memory: where it is cut short or the disk fails after it was opened, the process does not
get an error but ends by SIGBUS. And a lock must be gone with its holder, so that `filelock` may not fall back to files
that stand for locks.

A shard is a safetensors file of up to 32 entries, named by the hash of their keys. What it holds is therefore settled
before anything is computed: the keys that are missing, in order, are cut into lots, and a lot becomes a shard, written
aside and renamed when whole. A build that was killed leaves whole shards and nothing else that is read. What is then
missing are whole lots, and cutting them in order gives the same lots again; and since a lot is also what a model
computes together, in batches that start with it, every byte comes out as if nothing had happened. For the same reason
processes may share a build without talking: whoever is free takes the next lot that nobody works on.

That somebody works on a lot is known by a lock on a file beside the one that is being written. The kernel holds it and
drops it with its holder, however that ends, so there is no such thing as a lock left behind.
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
#: Key of a shard's metadata, JSON: what each entry was made from, and under a key of their own the digests of all.
METADATA, DIGESTS = "flowhooks", "digests"
_NAME = re.compile(r"[0-9a-f]{64}")
_LOCK = ".lock"
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
        if self.digest is not None and digest_of(data) != self.digest:
            raise DamagedShard("its bytes are not those that were written")
        return data


def digest_of(entry: bytes) -> str:
    """What a shard says of an entry, so that a flipped bit is found: sha256, in hex."""
    return hashlib.sha256(entry).hexdigest()


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


def contents(path: Path, *, partial: bool = False) -> dict[str, ShardEntry]:
    """Key -> place, of every entry of a shard, from its header alone.

    Args:
        partial: it is still being written, so that its name does not say yet what it holds.

    Raises OSError; DamagedShard if it is not as long as its header says, or holds other entries than its name does.
    """
    try:
        refuse_special(path)
        with safe_open(path, "numpy") as file:
            told = file.metadata() or {}
            # A file without holes: where each tensor lies follows from their order and sizes.
            tensors = [(name, file.get_slice(name)) for name in file.offset_keys()]
            parts = [(name, each.get_dtype(), tuple(each.get_shape())) for name, each in tensors]
        written = parse(told.get(METADATA, "{}"), most=MAX_TEXT).get(DIGESTS, {})
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
    """The size of one number: 32 of `F32`, 8 of `F8_E4M3` and of `BOOL`."""
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
    """The right of one process, and no other, to write a shard. What is not published is gone after the block.

    Args:
        path: the file that is written before it is published.
        lock: what others wait for; None on a disk that knows no locks.
    """

    def __init__(self, path: Path, lock: FileLock | None):
        self.path = path
        self._lock = lock
        self._published = False

    def publish(self, target: Path) -> None:
        """Let what was written to `path` appear as `target`. Raises OSError."""
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
            # Removed before it is let go: filelock looks whether what it locked is still there, and else tries anew.
            with suppress(OSError):
                os.unlink(self._lock.lock_file)
            self._lock.release()


def claim(path: Path, *, wait: bool) -> Claim | None:
    """Take the file `path` for writing; None if another process has it and `wait` is false. Raises OSError."""
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
        # Some network disks know no locks. Processes may do the same work there, each in a file of its own.
        return Claim(path.with_name(f"{path.name}.{uuid.uuid4().hex}"), None)
    return Claim(path, lock)


def sweep(folder: Path) -> None:
    """Remove the files in `folder` that nobody is writing any more."""
    if folder.is_dir():
        for name in {path.name.removesuffix(_LOCK) for path in folder.iterdir()}:
            if (left := claim(folder / name, wait=False)) is not None:
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
