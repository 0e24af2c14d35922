"""Which samples make up which batch: a function of the seed and the micro-step, with no state to save.

The run reads one endless stream of samples, epoch after epoch, each epoch a permutation of its own. A micro-step takes
the next `batch_size * world_size` of them and every process its slice. So a resumed run starts at its micro-step, no
sample is dropped at an epoch's end, and one process with the global batch sees the order that several see together.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def batch_plan(
    n: int, batch_size: int, seed: int, world_size: int = 1, rank: int = 0, start: int = 0
) -> Iterator[list[int]]:
    """Endless lists of `batch_size` indices below `n`, from micro-step `start` on, for one of `world_size` processes.

    A data set smaller than a batch fills it from the next epochs. Raises ValueError for numbers out of range.
    """
    if n < 1 or batch_size < 1 or world_size < 1 or start < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"expected n, batch_size, world_size >= 1, start >= 0, 0 <= rank < world_size; found {n=}, {batch_size=}, "
            f"{world_size=}, {start=}, {rank=}"
        )
    return _plan(n, batch_size, seed, world_size, rank, start)


def epoch_at(n: int, batch_size: int, world_size: int, micro_step: int) -> float:
    """How many epochs have been read when `micro_step` micro-steps are done."""
    return micro_step * batch_size * world_size / n


def _plan(n: int, batch_size: int, seed: int, world_size: int, rank: int, micro_step: int) -> Iterator[list[int]]:
    permutation = lru_cache(maxsize=2)(lambda epoch: _permutation(n, seed, epoch))
    while True:
        first = (micro_step * world_size + rank) * batch_size
        yield [int(permutation(at // n)[at % n]) for at in range(first, first + batch_size)]
        micro_step += 1


def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
