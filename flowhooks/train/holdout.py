"""Samples set aside: never trained on, measured instead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowhooks.data import Record
from flowhooks.errors import ConfigError, Problem


def split(records: Sequence[Record], count: int, seed: int, source: str) -> tuple[list[int], list[int]]:
    """Indices of the records to train on, and of ``count`` samples held out.

    The choice is the tail of a seeded permutation of the samples' sorted keys, so neither the order of files nor
    repeats change it; a held-out sample leaves with all its repeats and is measured once.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    names = sorted({(record.dataset, record.key) for record in records})
    if names and count >= len(names):
        message = f"{count} samples are to be held out of {len(names)}; leave at least one to train on"
        raise ConfigError(Problem(message, source, "$.validation.holdout"))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
    held = {names[i] for i in order[len(names) - count :]}
    kept = [i for i, record in enumerate(records) if (record.dataset, record.key) not in held]
    first = {(record.dataset, record.key): i for i, record in reversed(list(enumerate(records)))}
    return kept, sorted(first[name] for name in held)
