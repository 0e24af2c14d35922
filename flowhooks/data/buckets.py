"""Describe what a run will draw: the share of each data set, and the samples of each bucket (one trained size)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from flowhooks.data.findings import count
from flowhooks.data.records import Record
from flowhooks.data.schedule import Stream, phases, streams

SHOWN = 20


def bucket_report(records: Sequence[Record], batch_size: int, accumulation: int, processes: int = 1) -> list[str]:
    """Return a line on the samples of a step, then a line for each bucket, or for each part of it that is drawn
    separately, the largest first.

    For a bucket with fewer samples than a micro-step draws over all processes, the line says how often a batch repeats
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
    """Return `width x height`, and the number of frames of a video; of sound its samples."""
    width, height, frames = bucket
    if height == 1:
        return count(width, "sound sample")
    return f"{width}x{height}" + (f"x{frames}" if frames > 1 else "")


def small_bucket_warning(streams: Sequence[Stream], samples: int) -> str | None:
    """Return a warning if some streams hold fewer samples than a micro-step draws over all processes; None if none
    do."""
    small = [len(stream.indices) for stream in streams if len(stream.indices) < samples]
    if not small:
        return None
    return (
        f"a micro-step draws {samples:,} samples of one size, and {len(small):,} of {len(streams):,} groups of samples "
        f"that are drawn together hold fewer, the smallest {min(small):,}: there a batch holds samples more than once, "
        "and processes share them; lower `training.train_batch_size`, or add images of these sizes"
    )


def report(records: Sequence[Record]) -> list[str]:
    """Return a line for each phase with the share of each data set in what is drawn; none if one data set is drawn
    throughout.

    The share of a data set is that of its samples among those of a long run of steps.
    """
    drawn = streams(records)
    changing = phases(drawn)
    if len(changing) == 1 and len({record.dataset for record in records}) < 2:
        return []
    lines = []
    for phase in changing:
        weights: dict[str, float] = {}
        for i in phase.active:
            for name, number in Counter(records[index].dataset for index in drawn[i].indices).items():
                weights[name] = weights.get(name, 0.0) + drawn[i].probability * number
        total = sum(weights.values())
        shares = ", ".join(f"{name} {weight / total:.1%}" for name, weight in weights.items())
        when = "" if len(changing) == 1 else f" from step {phase.start:,}" + (f" to {phase.end:,}" if phase.end else "")
        lines.append(f"drawn{when}: {shares or 'nothing'}")
    return lines


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
