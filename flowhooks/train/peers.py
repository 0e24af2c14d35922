"""Tell the other processes of a run what this one does, and hear it of them, beside the steps and without collectives:
these wait where a process hangs."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import psutil
from torch import distributed as dist

from flowhooks import distributed
from flowhooks.reading import parse
from flowhooks.train.agreement import gather

#: Seconds after which the meeting point of all processes is taken for gone.
_PATIENCE = 10.0


@dataclass(frozen=True, kw_only=True)
class Beat:
    """Says what one process does.

    Args:
        tick: number of this beat; it rises while the process lives.
        count: counts what it got done.
        doing: what it is doing, such as ``step 12``.
        place: where its code is.
        waits: whether that is a wait for the other processes.
        host: name of its machine.
        pid: its process there.
        born: when that process started, in seconds since the epoch.
        words: why it ended; empty while it runs.
    """

    tick: int
    count: int
    doing: str
    place: str
    waits: bool
    host: str
    pid: int
    born: float
    words: str = ""


class Peers:
    """Exchanges beats through the store at which torch's processes met, on a connection of its own.

    Args:
        store: the store.
        prefix: of the keys of this run; the same on all processes.
    """

    def __init__(self, store: Any, prefix: str):
        self.rank, self.world = distributed.rank(), distributed.world_size()
        #: Rank -> its latest beat, of the other processes.
        self.beats: dict[int, Beat] = {}
        #: Whether the store no longer answers.
        self.gone = False
        self._store, self._prefix = store, prefix
        self._own: Beat | None = None
        self._asked, self._answered = Event(), Event()
        Thread(target=self._exchange, daemon=True, name="flowhooks-peers").start()

    def tell(self, own: Beat, wait: float = 0.0) -> None:
        """Send a beat, and receive those of the others, in a thread: a store whose process was stopped never answers.

        Args:
            wait: seconds to wait for that at most.
        """
        self._own = own
        self._answered.clear()
        self._asked.set()
        if wait:
            self._answered.wait(wait)

    @property
    def keeper(self) -> int | None:
        """Return the rank whose process holds the store; None where a launcher does."""
        return None if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0

    def _exchange(self) -> None:
        try:
            while self._asked.wait():
                self._asked.clear()
                own = self._own
                self._store.set(f"{self._prefix}/{self.rank}", json.dumps(asdict(own)) if own else "{}")
                for rank in set(range(self.world)) - {self.rank}:
                    key = f"{self._prefix}/{rank}"
                    # To get a key that nobody has set would wait for it.
                    if self._store.check([key]):
                        self.beats[rank] = Beat(**parse(self._store.get(key).decode()))
                self._answered.set()
        except RuntimeError:
            self.gone = True
            self._answered.set()


def peers() -> Peers | None:
    """Meet the other processes of the run; all processes call this together. None where there are none, or where
    torch's processes did not meet at an address."""
    place = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if distributed.world_size() == 1:
        return None
    prefix = gather(os.urandom(8).hex())[0]
    if not place[0] or not place[1].isdigit():
        return None
    try:
        store = dist.TCPStore(
            place[0],
            int(place[1]),
            is_master=False,
            timeout=timedelta(seconds=_PATIENCE),
            wait_for_workers=False,
        )
    except RuntimeError:
        return None
    return Peers(store, f"flowhooks/{prefix}")


def alive(beat: Beat) -> bool:
    """Return whether the process of a beat, which is on this machine, still runs."""
    try:
        process = psutil.Process(beat.pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - beat.born) < 2)
    except psutil.Error:
        return False
