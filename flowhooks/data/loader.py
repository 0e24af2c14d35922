"""The endless stream of batches for one process."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler, Subset

from flowhooks.data.dataset import CachedDataset, collate
from flowhooks.data.sampler import batch_plan


class _Plan(Sampler[list[int]]):
    """batch_plan, from `start` again each time it is iterated."""

    def __init__(self, *arguments: int):
        self._arguments = arguments

    def __iter__(self) -> Iterator[list[int]]:
        return batch_plan(*self._arguments)


def data_loader(
    dataset: CachedDataset | Subset,
    *,
    batch_size: int,
    seed: int,
    world_size: int = 1,
    rank: int = 0,
    start: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Batches of `batch_size` samples of a CachedDataset, or a Subset of one, from micro-step `start` on, without end.

    The order does not depend on `num_workers`. Each process already gets its own slice, so the loader must not be given
    to accelerate's `prepare`, which would slice it again.
    """
    return DataLoader(
        dataset,
        batch_sampler=_Plan(len(dataset), batch_size, seed, world_size, rank, start),
        collate_fn=collate,
        num_workers=num_workers,
        # A generator of its own: otherwise every loader draws from torch's global one, and a resumed run differs.
        generator=torch.Generator().manual_seed(seed),
    )
