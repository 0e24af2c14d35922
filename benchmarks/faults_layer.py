"""Faults that a child process of ``benchmarks.faults`` is started with. They are put under the program, in what Python
and its libraries call; the program itself is as it is."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def put(fault: dict[str, Any] | None, root: Path) -> None:
    """Put a fault under this process.

    Args:
        fault: ``kind`` and its options; None puts none.
        root: the folder whose writes are counted.
    """
    if fault is not None:
        given = dict(fault)
        _FAULTS[given.pop("kind")](root, **given)


class _Disk:
    """Counts the writes below a folder, and refuses all from one on."""

    def __init__(self, root: Path, full_from: int | None, tally: str | None):
        self.root, self.full_from, self.tally = str(root), full_from, tally
        self.writes = 0
        self._lock = threading.Lock()

    def holds(self, path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.path.abspath(os.fspath(path)).startswith(self.root)

    def write(self, path: object) -> None:
        with self._lock:
            self.writes += 1
            if self.tally is not None:
                file = os_open(self.tally, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.write(file, str(self.writes).encode())
                os.close(file)
            if self.full_from is not None and self.writes >= self.full_from:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


os_open = os.open


def full_disk(root: Path, full_from: int | None = None, tally: str | None = None) -> None:
    """Refuse every write below ``root`` from the one with this number on: new files and folders, what is written into
    files, and what safetensors writes. The file ``tally`` is told how many there were."""
    from safetensors import SafetensorError
    from safetensors import torch as tensors

    disk = _Disk(root, full_from, tally)
    usual, mkdir, serialize = io.open, os.mkdir, tensors.serialize_file

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            disk.write(self.name)
            return int(super().write(data) or 0)

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None,
        closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or not disk.holds(file):
            return usual(file, mode, buffering, encoding, errors, newline, closefd, opener)
        disk.write(file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffer: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding or "utf-8", errors, newline)

    def made(path: Any, *args: Any, **kwargs: Any) -> None:
        if disk.holds(path) and not os.path.exists(path):
            disk.write(path)
        mkdir(path, *args, **kwargs)

    def opened_low(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT and disk.holds(path):
            disk.write(path)
        return os_open(path, flags, *args, **kwargs)

    def serialized(data: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if disk.holds(path):
            try:
                disk.write(path)
            except OSError as error:
                # As the library says it, over half a file.
                Path(path).touch()
                words = "Error while serializing: I/O error: No space left on device (os error 28)"
                raise SafetensorError(words) from error
        serialize(data, path, *args, **kwargs)

    builtins.open = io.open = opened  # type: ignore[assignment]
    os.mkdir, os.open, tensors.serialize_file = made, opened_low, serialized


def clock(root: Path, jump: float, after: int) -> None:
    """Let the clock of the day jump by so many seconds, after it was read so many times."""
    usual, usual_ns, read = time.time, time.time_ns, [0]

    def shift() -> float:
        read[0] += 1
        return jump if read[0] > after else 0.0

    time.time = lambda: usual() + shift()
    time.time_ns = lambda: usual_ns() + int(shift() * 1e9)


def tracker(root: Path, method: str) -> None:
    """Let this method of the tracker of TensorBoard fail."""
    from accelerate.tracking import TensorBoardTracker

    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError("the tracker's server is gone")

    setattr(TensorBoardTracker, method, fails)


def worker(root: Path, name: str, line: int) -> None:
    """Send a signal to the processes that read batches, once the run has logged so many lines."""
    import psutil

    def wait() -> None:
        _until_logged(root, line)
        for child in psutil.Process().children():
            child.send_signal(getattr(signal, name))

    threading.Thread(target=wait, daemon=True).start()


def hang(root: Path, where: str, call: int) -> None:
    """Let one call of what the run needs never return: ``backward``, ``read`` of a sample, or ``write`` of a state."""
    import torch
    from safetensors import torch as tensors

    from flowhooks.data.dataset import CachedDataset

    holder, name = {
        "backward": (torch.Tensor, "backward"),
        "read": (CachedDataset, "sample"),
        "write": (tensors, "serialize_file"),
    }[where]
    usual: Callable[..., Any] = getattr(holder, name)
    made = [0]

    def hangs(*args: Any, **kwargs: Any) -> Any:
        made[0] += 1
        if made[0] == call:
            time.sleep(3600)
        return usual(*args, **kwargs)

    setattr(holder, name, hangs)


def _until_logged(root: Path, lines: int) -> None:
    file = root / "out" / "metrics.jsonl"
    while not file.is_file() or file.read_bytes().count(b"\n") < lines:
        time.sleep(0.01)


_FAULTS: dict[str, Callable[..., None]] = {
    "full_disk": full_disk,
    "clock": clock,
    "tracker": tracker,
    "worker": worker,
    "hang": hang,
}
