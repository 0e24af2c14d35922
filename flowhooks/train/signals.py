"""End a run at Ctrl-C or SIGTERM between two steps, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
from torch import distributed as dist

from flowhooks import distributed

_NOTICE = b"\nstopping after this step, with a checkpoint; press Ctrl-C again to stop at once\n"


class StopRequest:
    """Holds whether, and by which signal, the run was requested to stop."""

    def __init__(self, patience: timedelta | None = None) -> None:
        self._asked = 0
        self._interrupts = 0
        # Flags travel between host processes: a device collective would make every step wait for the device.
        self._group = dist.new_group(backend="gloo", timeout=patience) if distributed.world_size() > 1 else None

    def agreed(self) -> int:
        """Return the signal that any process received, 0 for none; all processes get the same result. Call it on all of
        them."""
        if self._group is None:
            return self._asked
        asked = torch.tensor([self._asked])
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        return int(asked)

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. A second Ctrl-C raises KeyboardInterrupt."""
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if not self._asked:
            # Not print: a handler may interrupt a write to the same stream.
            os.write(2, _NOTICE)
        self._asked = self._asked or int(number)


@contextmanager
def stop_requests(patience: timedelta | None = None) -> Iterator[StopRequest]:
    """Catch both signals inside the block. Outside the main thread Python allows no handlers, and none are installed.

    Args:
        patience: longest wait for the other processes; None leaves it to torch.
    """
    request = StopRequest(patience)
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, request.receive)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(number: int) -> None:
    """End the program the way the signal would have: KeyboardInterrupt, or SystemExit(128 + number)."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
