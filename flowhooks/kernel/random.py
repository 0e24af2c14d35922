"""Draw random numbers that depend on (seed, purpose, micro-step, position in the global batch) and on nothing else.

So a resumed run, a run on more processes, and a run whose hooks draw in another order all see the same noise.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Draws the random numbers of one micro-step.

    Args:
        seed: seed of the run.
        micro_step: counts micro-batches from 0.
        rank, world_size: of this process; it holds positions ``rank * B`` to ``(rank + 1) * B - 1`` of the global
            batch.
    """

    seed: int
    micro_step: int
    rank: int = 0
    world_size: int = 1

    def normal_like(self, like: Tensor, purpose: str) -> Tensor:
        """Return ``[B, ...]`` standard normal noise, one stream per sample, on ``like``'s device in its dtype."""
        out = torch.empty_like(like)
        if like.is_meta:
            # There are no numbers to draw, and torch has no generator there.
            return out
        generator = torch.Generator(like.device)
        for position, row in enumerate(out, start=self.rank * len(out)):
            generator.manual_seed(self.seed_of(purpose, position))
            row.normal_(generator=generator)
        return out

    def shared(self, purpose: str) -> torch.Generator:
        """Return a CPU generator in the same state on every process, for draws over the global batch (see
        :meth:`local_rows`)."""
        return torch.Generator().manual_seed(self.seed_of(purpose, 0))

    def local_rows(self, values: Tensor) -> Tensor:
        """Return this process's rows of ``values``, which were drawn for the global batch."""
        size = len(values) // self.world_size
        return values[self.rank * size : (self.rank + 1) * size]

    def seed_of(self, purpose: str, position: int) -> int:
        """Return the seed for ``purpose`` at this position of the global batch."""
        key = f"{self.seed}/{purpose}/{self.micro_step}/{position}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
