"""Hold samples out: they are never trained on, and used for measuring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowhooks.data.records import Record
from flowhooks.errors import ConfigError, Problem


def split(records: Sequence[Record], count: int, seed: int, source: str) -> tuple[list[int], list[int]]:
    """Return indices of the records to train on, and of ``count`` held-out images, each with one record.

    The choice is the tail of a seeded permutation of the images' sorted digests, so neither file names, the order of
    files nor repeats change it. All records that show a held-out image, under whatever key, leave training; it is
    measured with the first of them by data set and key.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    shown: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        shown.setdefault(record.image.digest, []).append(i)
    digests = sorted(shown)
    if digests and count >= len(digests):
        message = f"{count} images are to be held out of {len(digests)}; leave at least one to train on"
        raise ConfigError(Problem(message, source, "$.validation.holdout"))
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(digests))
    held = {digests[i] for i in order[len(digests) - count :]}
    kept = [i for i, record in enumerate(records) if record.image.digest not in held]
    return kept, sorted(min(shown[each], key=lambda i: (records[i].dataset, records[i].key)) for each in held)
