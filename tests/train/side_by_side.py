"""Start the processes of one test, side by side."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

from torch import multiprocessing


def side_by_side(worker: Callable[..., None], *arguments: Any, count: int) -> None:
    """Run ``worker(rank, *arguments)`` in ``count`` new processes and wait for them.

    One process imports the worker's module and they are forked off it: imports take several times as long as what is
    tested, and the process that runs the tests has threads, so it is not forked itself.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a worker failed; with its traceback.
    """
    get_context("forkserver").set_forkserver_preload([worker.__module__])
    multiprocessing.start_processes(worker, args=arguments, nprocs=count, start_method="forkserver")
