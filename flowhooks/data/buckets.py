"""What each bucket holds, and what that means for a run. A bucket is all samples of one trained size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from flowhooks.data.findings import count
from flowhooks.data.records import Record
from flowhooks.data.schedule import Stream, streams

SHOWN = 20


def bucket_report(records: Sequence[Record], batch_size: int, accumulation: int, processes: int = 1) -> list[str]:
    """What a step draws, then a line for each bucket, and one more for those that are drawn apart, the largest first.

    A bucket with fewer samples than a micro-step draws over all processes is told with how often a batch then repeats
    a sample, and the `repeats` that would fill it.
    """
    if not records:
        return []
    draw = batch_size * processes
    where = "" if processes == 1 else f" on {processes:,} processes"
    times = "once" if accumulation == 1 else f"{accumulation:,} times"
    lines = [f"a step draws {count(draw, 'sample')} of one bucket {times}{where}"]
    drawn = sorted(streams(records), key=lambda stream: -len(stream.indices))
    lines += [_line(records, stream, draw) for stream in drawn[:SHOWN]]
    rest = [len(stream.indices) for stream in drawn[SHOWN:]]
    if rest:
        small = sum(each < draw for each in rest)
        lines.append(f"{count(len(rest), 'more bucket')} with {count(sum(rest), 'sample')}; {small:,} below {draw:,}")
    return lines


def named(bucket: tuple[int, int, int]) -> str:
    """`width x height`, and frames of a clip."""
    width, height, frames = bucket
    return f"{width}x{height}" + (f"x{frames}" if frames > 1 else "")


def _line(records: Sequence[Record], stream: Stream, draw: int) -> str:
    held = [records[i] for i in stream.indices]
    sets = Counter(record.dataset for record in held)
    shares = ", ".join(f"{number:,} of {name!r}" for name, number in sets.items())
    line = f"{named(held[0].bucket)}: {count(len(held), 'sample')} ({shares})"
    if len(held) >= draw:
        return f"{line}, {len(held) / draw:,.1f} draws an epoch"
    distinct = len(set(held))
    low, high = draw // distinct, math.ceil(draw / distinct)
    often = f"{low}" if low == high else f"{low} or {high}"
    return (
        f"{line}, fewer than a draw: each is in it {often} times; `repeats` {high - 1} in "
        f"{', '.join(map(repr, sets))} makes it {distinct * high:,}, or lower `training.train_batch_size`"
    )
