"""Order one stream of samples without end: the order depends on the seed and the place in it only, with no state to
save.

The stream consists of epochs, each a permutation of its own. A micro-step takes the next `batch_size * world_size`
samples, and each process its slice. So a resumed run starts at its micro-step, no sample is dropped at an epoch's end,
and one process with the global batch sees the same order as several processes together.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

# The first number of every random generator's key, so that no two purposes draw the same numbers.
TURNS, ORDER, WORDING, SHOWING = range(4)


class Order:
    """Gives the endless order of `n` samples.

    Args:
        stream: number of the stream; streams of one seed have different orders.
    """

    def __init__(self, n: int, seed: int, stream: int = 0):
        self.n = n
        # A batch reads one epoch's end and the next one's beginning.
        self._permutation = lru_cache(maxsize=2)(lambda epoch: _permutation(n, seed, stream, epoch))

    def samples(self, first: int, count: int) -> list[int]:
        """Return the samples at the places from `first` on, as indices below `n`."""
        n, permutation = self.n, self._permutation
        return [int(permutation(at // n)[at % n]) for at in range(first, first + count)]


def batch_plan(
    n: int, batch_size: int, seed: int, world_size: int = 1, rank: int = 0, start: int = 0
) -> Iterator[list[int]]:
    """Yield lists of `batch_size` indices below `n` without end, from micro-step `start` on, for one of `world_size`
    processes.

    A data set smaller than a batch fills it from the next epochs. Raises ValueError for numbers out of range.
    """
    check_numbers(n=n, batch_size=batch_size, world_size=world_size, rank=rank, start=start)
    return _plan(Order(n, seed), batch_size, world_size, rank, start)


def check_numbers(*, n: int, batch_size: int, world_size: int, rank: int = 0, start: int = 0) -> None:
    """Raise ValueError for numbers out of range."""
    if n < 1 or batch_size < 1 or world_size < 1 or start < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"expected n, batch_size, world_size >= 1, start >= 0, 0 <= rank < world_size; found {n=}, {batch_size=}, "
            f"{world_size=}, {start=}, {rank=}"
        )


def generator(seed: int, *key: int) -> np.random.PCG64:
    """Return a generator of random bits for one purpose: `key` begins with TURNS, ORDER, WORDING or SHOWING."""
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))


def _plan(order: Order, batch_size: int, world_size: int, rank: int, micro_step: int) -> Iterator[list[int]]:
    while True:
        yield order.samples((micro_step * world_size + rank) * batch_size, batch_size)
        micro_step += 1


def _permutation(n: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    bits = generator(seed, ORDER, stream, epoch) if stream else np.random.PCG64([seed, epoch])
    return np.random.Generator(bits).permutation(n)
