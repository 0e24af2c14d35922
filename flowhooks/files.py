"""Write files and folders under a temporary name, rename them when complete, with the permissions of the user's umask;
and say where flowhooks keeps what it builds for itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

#: Exceptions of a write that the disk refuses.
REFUSALS = (OSError, SafetensorError)
#: Names that :func:`aside_of` returns, and returned in an older version.
_ASIDE = re.compile(r"\..+\.[0-9a-f]{8}(?:[0-9a-f]{24})?\.new")

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_WORDS = ("No space left", "Disk quota", "File too large")


def is_full(error: BaseException) -> bool:
    """Return whether a write failed for lack of space or quota, or because the file is larger than allowed. safetensors
    and torch put the system's words into errors of their own."""
    return getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _FULL_WORDS)


def aside_of(path: Path) -> Path:
    """Return a hidden path beside ``path``, to be renamed to it when complete."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder in which no process is writing now: files and folders
    with names of :func:`aside_of`, and nothing else. What cannot be removed stays."""
    for left in list(folder.iterdir()) if folder.is_dir() else ():
        if not _ASIDE.fullmatch(left.name) or left.is_symlink():
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            with suppress(OSError):
                left.unlink()


def write_aside(file: Path, write: Callable[[Path], object]) -> Path:
    """Call ``write`` with a hidden path beside ``file``, then rename it over ``file``: a reader never sees half of it.

    Raises:
        OSError: the disk refuses; and whatever ``write`` raises. ``file`` is then as it was.
    """
    aside = aside_of(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        share(aside)
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)
    return file


def share(path: Path) -> None:
    """Give a file, or every file in a folder, the permissions that a new file has there.

    safetensors writes files that only their owner may read; programs of other users must be able to read them too.

    Raises:
        OSError: the folder cannot be written to.
    """
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    mode = _new_mode(path.parent)
    for file in files:
        if stat.S_IMODE(file.stat().st_mode) != mode:
            # Some disks have no permissions.
            with suppress(OSError):
                file.chmod(mode)


def _new_mode(folder: Path) -> int:
    """Return the permissions of a new file, tested on the disk: a folder may have its own rules, and a process cannot
    read its umask without changing it for all its threads."""
    probe = aside_of(folder / "mode")
    file = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(file).st_mode)
    finally:
        os.close(file)
        probe.unlink(missing_ok=True)


def home() -> Path:
    """Return the folder for everything flowhooks builds for itself: `$FLOWHOOKS_HOME`, else `~/.cache/flowhooks`."""
    chosen = os.environ.get("FLOWHOOKS_HOME")
    return Path(chosen).expanduser() if chosen else Path("~/.cache/flowhooks").expanduser()


def place(name: str, recipe: dict[str, Any]) -> Path:
    """Return `home()/digits/<name>-<digest of the recipe>`: a changed recipe gets a new folder, never an old one."""
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    return home() / "digits" / f"{name}-{digest}"


@contextmanager
def whole(target: Path, *, alike: bool = True) -> Iterator[Path]:
    """Yield an empty folder beside `target` that becomes `target` when the block ends without an exception.

    A killed process leaves only a hidden sibling, so a folder that exists under its own name is complete.

    Args:
        alike: whether all processes write the same content: the first to finish wins, and the others discard theirs.

    Raises:
        OSError: the disk refuses, or another process was first and the folders are not ``alike``.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(target)
    aside.mkdir()
    try:
        yield aside
        share(aside)
        try:
            aside.rename(target)
        except OSError:
            if not alike or not target.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
