"""Load the batches of one process in the order of the schedule."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from flowhooks.data.caption_augmentation import caption_of
from flowhooks.data.dataset import CachedDataset, collate
from flowhooks.data.references import shows_references
from flowhooks.data.schedule import SampleDraw, Schedule

#: From Linux' <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1


class _Batches(Sampler[list[SampleDraw]]):
    """Yields batches of one process; each iteration begins at micro-step `start`."""

    def __init__(self, schedule: Schedule, rank: int, start: int):
        self._schedule, self._rank, self._start = schedule, rank, start

    def __iter__(self) -> Iterator[list[SampleDraw]]:
        return self._schedule.batches(self._rank, self._start)


class _Visited(Dataset):
    """Gives samples under the captions, and with or without the references, of their draws."""

    def __init__(self, dataset: CachedDataset, seed: int):
        self._dataset, self._seed = dataset, seed

    def __getitem__(self, visit: SampleDraw) -> dict[str, Any]:
        record = self._dataset.records[visit.record]
        caption = caption_of(record, self._seed, visit.place)
        return self._dataset.sample(visit.record, caption, shown=shows_references(record, self._seed, visit.place))


def _ends_with(parent: int, _: int) -> None:
    """Have the kernel end this worker when the training process is killed: torch's own watch misses a worker that waits
    to hand over a batch. Works on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def data_loader(
    dataset: CachedDataset, schedule: Schedule, *, rank: int = 0, start: int = 0, num_workers: int = 0
) -> DataLoader:
    """Return a loader of a schedule's batches over a CachedDataset for one process, from micro-step `start` on.

    Neither order nor captions depend on `num_workers`. Each process already gets its own slice, so the loader must not
    be given to accelerate's `prepare`, which would slice it again.
    """
    return DataLoader(
        _Visited(dataset, schedule.seed),
        batch_sampler=_Batches(schedule, rank, start),
        collate_fn=collate,
        num_workers=num_workers,
        # The parent of one that a server forks is that server.
        worker_init_fn=None if multiprocessing.get_start_method() == "forkserver" else partial(_ends_with, os.getpid()),
        # A generator of its own: otherwise every loader draws from torch's global one, and a resumed run differs.
        generator=torch.Generator().manual_seed(schedule.seed),
    )
