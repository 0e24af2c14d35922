"""Processes of tests, forked off one that has imported everything: imports take several times as long as what is
tested, and the process that runs the tests has threads, so it is not forked itself."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

#: What one test or another needs; whoever comes first starts the process that the others are forked off too.
IMPORTED = (
    "flowhooks.cli",
    "flowhooks.train.loop",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "tests.laws.cases",
    "tests.families",
)


def context(*modules: str) -> ForkServerContext:
    found = get_context("forkserver")
    found.set_forkserver_preload([*IMPORTED, *modules])
    return found


def side_by_side(worker: Callable[..., None], *arguments: Any, count: int) -> None:
    """Run ``worker(rank, *arguments)`` in ``count`` new processes and wait for them.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a worker failed; with its traceback.
    """
    context(worker.__module__)
    multiprocessing.start_processes(worker, args=arguments, nprocs=count, start_method="forkserver")


class Program:
    """``flowhooks`` with these arguments, as a process of its own; it is asked as a :class:`subprocess.Popen` is.

    Args:
        folder: where what it prints is kept while it runs.
    """

    def __init__(self, arguments: Sequence[str], folder: Path):
        self._printed = [folder / "stdout", folder / "stderr"]
        printed, threads = list(map(str, self._printed)), torch.get_num_threads()
        self._process = context().Process(target=_main, args=(list(arguments), printed, threads))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end: what it printed.

        Raises:
            TimeoutError: it has not ended, and is killed.
        """
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise TimeoutError(f"flowhooks did not end in {timeout} s")
        out, err = (file.read_text(encoding="utf-8") for file in self._printed)
        return out, err


def _main(arguments: list[str], printed: list[str], threads: int) -> None:
    from flowhooks.cli import main

    for number, file in enumerate(printed, start=1):
        with open(file, "wb") as stream:
            os.dup2(stream.fileno(), number)
    # The sums of this process are made by as many threads as those of the one that runs the tests.
    torch.set_num_threads(threads)
    sys.exit(main(arguments))
