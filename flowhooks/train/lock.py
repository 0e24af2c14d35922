"""Lock an output folder before anything loads: a file in it names the run that trains there."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from flowhooks.errors import ConfigError, FlowhooksWarning, Problem
from flowhooks.reading import parse, read_text

LOCK = ".running.json"
#: Seconds by which two readings of the start of one process may differ, as clocks are rounded.
_SECONDS = 2.0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the output folder of a run inside the block; on exit, the file is removed.

    A file that a killed run left on this host is replaced, with a warning.

    Raises:
        ConfigError: another run that is alive, or one on another host, holds the folder; or it cannot be written to.
    """
    file, own = folder / LOCK, _own()
    _take(file, own)
    try:
        yield
    finally:
        release(folder)


def release(folder: Path) -> None:
    """Remove the file of this process, if it holds the folder. What the disk refuses stays."""
    file = folder / LOCK
    with suppress(OSError):
        # Never the lock of a run that took this one for stale.
        if _holder(file) == _own():
            file.unlink()


def _take(file: Path, own: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while not _created(file, own):
            holder = _holder(file)
            if holder is None or not _gone(holder):
                raise ConfigError(Problem(_held(file, holder), str(file.parent)))
            message = (
                f"{file}: was left by a run that is no longer there (process {holder['pid']}, started "
                f"{_when(holder)}); this run takes the folder"
            )
            warnings.warn(message, FlowhooksWarning, stacklevel=4)
            # Of two runs that find it stale only one renames it; the other looks again.
            with suppress(FileNotFoundError):
                stale = file.with_name(f"{LOCK}.{os.getpid()}")
                file.rename(stale)
                stale.unlink()
    except OSError as error:
        message = f"cannot be written to: {error.strerror or error}; name another `output_dir`"
        raise ConfigError(Problem(message, str(file.parent))) from error


def _created(file: Path, own: dict[str, Any]) -> bool:
    try:
        with open(file, "x", encoding="utf-8") as stream:
            json.dump(own, stream)
    except FileExistsError:
        return False
    return True


def _own() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "start": psutil.Process().create_time()}


def _holder(file: Path) -> dict[str, Any] | None:
    """Return the contents of a lock: who holds it; None where the file does not say."""
    try:
        found = parse(read_text(file))
        return {"host": str(found["host"]), "pid": int(found["pid"]), "start": float(found["start"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _gone(holder: dict[str, Any]) -> bool:
    """Return whether the process is known to have ended; for another host this is never known."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        return abs(psutil.Process(holder["pid"]).create_time() - holder["start"]) > _SECONDS
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return True


def _held(file: Path, holder: dict[str, Any] | None) -> str:
    if holder is None:
        return f"{file.name} there does not say who trains in it; remove that file if nobody does"
    who = f"process {holder['pid']} on {holder['host']}, since {_when(holder)}"
    return (
        f"another run trains here ({who}); wait for it, choose another `output_dir`, or, if it is gone, remove "
        f"{file.name} there"
    )


def _when(holder: dict[str, Any]) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(holder["start"]))
    except (ValueError, OverflowError, OSError):
        return "an unknown time"
