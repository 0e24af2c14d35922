"""End a run that hangs, on all of its processes, with a message that says where.

A thread of each process looks whether anything got done: every call of a part of the pipeline counts, so every step,
every step of a rollout or of a validation image, and every entry of the cache does, as do checkpoints. A long phase
that goes on is none that hangs, and processes that wait for another one are none while that one goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType

import psutil
from torch import nn

from flowhooks.errors import TO_RESUME, TrainingError
from flowhooks.manifest import checkpoints_in
from flowhooks.train.lock import release
from flowhooks.train.peers import Beat, Peers, alive, peers

#: The signal that lets the watch raise its error in the thread of the steps. Programs ignore it unless they ask for it.
_SIGNAL = getattr(signal, "SIGURG", None)
#: Seconds that the thread of the steps has to end by that error, with all that it cleans up, before the process ends.
_GRACE = 10.0
#: A long phase of one process is watched by what it gets done; torch's own limit knows nothing of that.
PATIENCE = timedelta(days=1)
#: Words of gloo, NCCL and the store for another process that is gone.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "remote process")
#: How torch begins to tell of a process that read batches.
_WORKER = "DataLoader worker (pid"
_PACKAGE = Path(__file__).parents[1]
_WAITS = os.path.join("torch", "distributed") + os.sep


class Watchdog:
    """Watches one process of a run, and hears of the others what they do.

    Args:
        limit: seconds in which something must get done; None watches nothing.
        folder: the run's output folder.
        again: the command that resumes the run.
    """

    def __init__(self, limit: float | None, folder: Path, again: str):
        self.limit, self.folder, self.again = limit, folder, again
        self.failure: TrainingError | None = None
        self._tick, self._count, self._doing, self._paused = 0, 0, "the start", 0
        self._over = threading.Event()
        self._silent: dict[int, float] = {}
        self._heard: dict[int, int] = {}
        self._peers: Peers | None = None
        self._thread = threading.current_thread()
        process = psutil.Process()
        self._who = {"host": socket.gethostname(), "pid": process.pid, "born": process.create_time()}

    def mark(self, doing: str | None = None) -> None:
        """Note that something got done.

        Args:
            doing: what is done next; None goes on with what was done before.
        """
        self._count += 1
        self._doing = doing or self._doing

    @contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Do inside the block what may take any time without a sign, such as a download."""
        self.mark(doing)
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self.mark()

    @contextmanager
    def counting(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Count every call of these modules, and of the modules directly in them, inside the block."""

        # A function: a method would be copied with the module, and this object cannot be.
        def seen(*_: object) -> None:
            self._count += 1

        parts = {id(part): part for module in modules for part in (module, *module.children())}
        handles = [part.register_forward_pre_hook(seen) for part in parts.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch this process inside the block.

        Raises:
            TrainingError: the run hangs. Where the thread of the steps does not come back to take this error, the
                process ends, with the message on stderr and exit code 1.
        """
        if self.limit is None:
            yield
            return
        before = None
        if self._raises:
            before = signal.signal(_SIGNAL, self._raise)  # type: ignore[arg-type]
        threading.Thread(target=self._watch, args=(self.limit,), daemon=True, name="flowhooks-watchdog").start()
        try:
            with self.told():
                yield
        except BaseException as error:
            self._beat(str(error).partition("\n")[0] or type(error).__name__, wait=2.0)
            raise
        finally:
            self._over.set()
            if self._raises:
                signal.signal(_SIGNAL, before)  # type: ignore[arg-type]

    def meet(self) -> None:
        """Hear of the other processes from here on. All processes call this together."""
        if self.limit is not None:
            self._peers = peers()

    @contextmanager
    def told(self) -> Iterator[None]:
        """Raise an error of this watch inside the block in place of what torch makes of a run that hangs, or of the
        connection to another process that is gone."""
        try:
            yield
        except Exception as error:
            if self.failure is not None and error is not self.failure:
                # Libraries catch what is raised while they wait.
                raise self.failure from error
            if isinstance(error, RuntimeError) and _WORKER in str(error):
                # torch raises it wherever the thread of the steps is.
                raise worker_gone(error) from error
            lost = isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
            if self._peers is None or not lost:
                raise
            raise TrainingError(self._lost(self._peers)) from error

    @property
    def _raises(self) -> bool:
        return _SIGNAL is not None and self._thread is threading.main_thread()

    @property
    def _interval(self) -> float:
        return min(5.0, (self.limit or 50.0) / 10)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.failure is not None:
            raise self.failure

    def _watch(self, limit: float) -> None:
        quiet, before, seen = 0.0, time.monotonic(), None
        while not self._over.wait(self._interval):
            now = time.monotonic()
            # Of the time in which this process was stopped, or its machine slept, nothing counts.
            passed, before = min(now - before, 2 * self._interval), now
            if self._paused:
                self._count += 1
            self._beat()
            beats = self._peers.beats if self._peers is not None else {}
            for rank, beat in list(beats.items()):
                still = self._heard.get(rank) == beat.tick
                self._silent[rank] = self._silent.get(rank, 0.0) + passed if still else 0.0
                self._heard[rank] = beat.tick
            found = (self._count, sorted((rank, beat.count) for rank, beat in beats.items()))
            quiet, seen = quiet + passed if found == seen else 0.0, found
            if quiet >= limit:
                self._end(limit)
                return

    def _beat(self, words: str = "", wait: float = 0.0) -> None:
        if self._peers is not None:
            self._tick += 1
            self._peers.tell(self._own(words), wait)

    def _own(self, words: str = "") -> Beat:
        place, waits = _place(self._thread.ident)
        return Beat(
            tick=self._tick, count=self._count, doing=self._doing, place=place, waits=waits, words=words, **self._who
        )

    def _end(self, limit: float) -> None:
        message = f"nothing got done for {limit:g} s (`training.watchdog_seconds`): {self._hangs(limit)}"
        self.failure = TrainingError(f"{message}\n{self._onward()}")
        self._beat(message.partition("\n")[0], wait=1.0)
        for rank in self._unheard(limit / 2):
            # It is of this run, which has ended: stopped, it would hold its memory for ever.
            beat = self._peers.beats.get(rank) if self._peers is not None else None
            if beat is not None and beat.host == self._who["host"] and alive(beat):
                with suppress(psutil.Error):
                    psutil.Process(beat.pid).kill()
        for child in multiprocessing.active_children():
            # The end of this process would wait for one that is stopped.
            with suppress(psutil.Error):
                if psutil.Process(child.pid).status() == psutil.STATUS_STOPPED:
                    child.kill()
        if self._raises:
            signal.pthread_kill(self._thread.ident, _SIGNAL)  # type: ignore[arg-type]
            if self._over.wait(_GRACE):
                return
        with suppress(OSError):
            os.write(2, f"\n{self.failure}\n".encode())
        release(self.folder)
        os._exit(1)

    def _hangs(self, limit: float) -> str:
        own = self._own()
        if self._peers is None:
            return (
                f"the run hangs at {own.doing}, in {own.place}. Look at what is read or waited for there: a disk, a "
                "network, a driver; raise the limit if that was no fault"
            )
        rank, silent = self._peers.rank, self._unheard(limit / 2)
        beats = {**self._peers.beats, rank: own}
        working = [each for each, beat in beats.items() if each not in silent and not beat.waits]
        if silent:
            named, does = _ranks(silent), "does not answer" if len(silent) == 1 else "do not answer"
            told = f"{named} {does}, stopped, killed or cut off"
        elif working and len(working) < len(beats):
            told = f"{_ranks(working)} {'hangs' if len(working) == 1 else 'hang'} while the others wait"
        else:
            told = "all processes hang, or wait for each other"
        lines = [
            f"\n  rank {each}{' (this one)' if each == rank else ''}: {'last seen ' if each in silent else ''}at "
            f"{beat.doing}, in {beat.place}"
            for each, beat in sorted(beats.items())
        ]
        return told + "".join(lines)

    def _unheard(self, limit: float) -> list[int]:
        """Return the ranks that have sent nothing for this long."""
        if self._peers is None:
            return []
        keeper = self._peers.keeper
        if self._peers.gone and keeper is not None:
            return [keeper]
        silent = sorted(rank for rank, seconds in self._silent.items() if seconds >= limit)
        # Where the store does not answer nobody is heard, and it is its process that hangs.
        return [keeper] if keeper in silent else silent

    def _lost(self, found: Peers) -> str:
        """Return what is known of a process that this one has lost."""
        end = time.monotonic() + 2 * self._interval + 1
        gone: list[int] = []
        while not gone and time.monotonic() < end:
            self._beat(wait=1.0)
            here = {rank: beat for rank, beat in found.beats.items() if beat.host == self._who["host"]}
            gone = [rank for rank, beat in here.items() if not alive(beat)]
            gone = gone or [rank for rank, beat in found.beats.items() if beat.words]
            if not gone and found.gone and found.keeper is not None:
                gone = [found.keeper]
            if not gone:
                time.sleep(min(0.2, self._interval))
        lines = []
        for rank in sorted(gone):
            beat = found.beats.get(rank)
            who = f"rank {rank}" if beat is None else f"rank {rank} (process {beat.pid} on {beat.host})"
            why = f"ended: {beat.words}" if beat is not None and beat.words else "is gone: it was killed, or has failed"
            at = "" if beat is None else f"; it was last seen at {beat.doing}"
            lines.append(f"{who} {why}{at}")
        told = "\n".join(lines) or "another process of the run is gone: it was killed, has failed, or was cut off"
        return f"{told}\n{self._onward()}"

    def _onward(self) -> str:
        """Return what is left of the run, and the command that goes on."""
        whole = checkpoints_in(self.folder)
        left = f"the last checkpoint is {whole[-1]}" if whole else f"{self.folder} has no checkpoint yet"
        return f"{left}; {TO_RESUME}{self.again}"


def worker_gone(error: Exception) -> TrainingError:
    """Return the error of a run of which a process that reads batches is gone, by what came of it."""
    return TrainingError(
        f"one of the processes that read batches is gone ({type(error).__name__}: {error}), as where memory ran out: "
        "start again with `--resume latest`, and with fewer `training.dataloader_num_workers` if it "
        "happens again"
    )


def _ranks(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _place(thread: int | None) -> tuple[str, bool]:
    """Return where the code of a thread is, by its innermost line of flowhooks, and whether it waits in
    torch.distributed."""
    frame = sys._current_frames().get(thread or 0)
    first = last = ""
    waits = False
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        waits = waits or _WAITS in str(file)
        told = f"{file.name}:{frame.f_lineno} ({frame.f_code.co_name})"
        first = first or told
        if not last and file.is_relative_to(_PACKAGE):
            last = f"{file.relative_to(_PACKAGE.parent).as_posix()}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return last or first or "a thread that has ended", waits
