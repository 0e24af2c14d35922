"""Choose the samples of each batch, over several data sets, sizes and times, with no state to save.

Samples that may be in one batch form a stream: one size, and one probability and time of their data sets. Every
micro-step draws from one stream, the same on all processes, so that a batch holds one size. Streams take turns at
random, yet evenly, by their weight: `probability` times samples. Each has its own epochs, see `sampler`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowhooks.data.records import Record
from flowhooks.data.sampler import TURNS, Order, check_numbers, generator


class SampleDraw(NamedTuple):
    """Names one sample of a batch.

    Args:
        record: index of its record.
        place: position in the run's global stream of samples; everything random about the draw depends on it and the
            seed.
    """

    record: int
    place: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Holds samples that are drawn together.

    Args:
        indices: indices of their records.
        probability: relative weight of each sample.
        start_step: optimiser steps done before it is drawn.
        end_step: optimiser steps done after which it is no longer drawn; None: to the end.
    """

    indices: Sequence[int]
    probability: float = 1.0
    start_step: int = 0
    end_step: int | None = None

    @property
    def weight(self) -> float:
        return self.probability * len(self.indices)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Covers the steps between two changes of what is drawn: from `start` to before `end`; an `end` of None is never.

    Args:
        active: numbers of the streams that are drawn.
    """

    start: int
    end: int | None
    active: tuple[int, ...]


def streams(records: Sequence[Record], kept: Sequence[int] | None = None) -> tuple[Stream, ...]:
    """Return the streams of the records with the indices `kept`, or of all, in the order in which they first appear."""
    grouped: dict[tuple, list[int]] = {}
    for i in range(len(records)) if kept is None else kept:
        drawn = records[i].drawing
        key = (records[i].bucket, drawn.probability, drawn.start_step, drawn.end_step)
        grouped.setdefault(key, []).append(i)
    return tuple(
        Stream(indices=indices, probability=probability, start_step=start, end_step=end)
        for (_, probability, start, end), indices in grouped.items()
    )


def phases(streams: Sequence[Stream]) -> list[Phase]:
    """Return the phases from step 0 on, without end; a phase may have no active stream."""
    changes = sorted({0, *(s.start_step for s in streams), *(s.end_step for s in streams if s.end_step is not None)})
    return [
        Phase(
            start=start,
            end=end,
            active=tuple(
                i for i, s in enumerate(streams) if s.start_step <= start and (s.end_step is None or start < s.end_step)
            ),
        )
        for start, end in zip(changes, [*changes[1:], None], strict=True)
    ]


class WeightedInterleaver:
    """Interleaves S weighted streams evenly: a stream of weight p is drawn once in every interval of length 1/p, at a
    random time in it.

    After m draws it was drawn p m times, within 1 + p (S - 2). Streams of equal share come in rounds, each in an
    order of its own, so that no stream falls into step with anything else that alternates in a run.

    Args:
        weights: weights of the streams, above 0.
        key: key of the random order; different keys give different orders under one seed.
    """

    def __init__(self, weights: Sequence[float], seed: int, key: int = 0):
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self._seed, self._key = seed, key

    def after(self, done: int) -> tuple[list[int], Iterator[int]]:
        """Return how often each stream was drawn after `done` draws, and an iterator over the stream numbers of the
        draws that follow."""
        # By this time at most `done` draws can have happened, and few are left to count one by one.
        early = max(0, done - len(self._shares))
        times = [self._times(number, early) for number in range(len(self._shares))]
        counts, heap = [], []
        for number, stream in enumerate(times):
            index, time = next(each for each in stream if each[1] >= early)
            counts.append(index)
            heap.append((time, number))
        heapq.heapify(heap)
        following = self._following(heap, times)
        for _ in range(done - sum(counts)):
            counts[next(following)] += 1
        return counts, following

    def _times(self, number: int, early: int) -> Iterator[tuple[int, float]]:
        """Yield number and time of the stream's draws, from one before `early`, or its first, on."""
        share = self._shares[number]
        index = max(0, int(share * early) - 1)
        draw = np.random.Generator(generator(self._seed, TURNS, self._key, number).advance(index))
        while True:
            yield index, (index + draw.random()) / share
            index += 1

    def _following(self, heap: list[tuple[float, int]], times: list[Iterator[tuple[int, float]]]) -> Iterator[int]:
        while True:
            number = heap[0][1]
            heapq.heapreplace(heap, (next(times[number])[1], number))
            yield number


class Schedule:
    """Gives the batches of a run.

    Args:
        batch_size: samples of a micro-step on each process.
        accumulation: micro-steps of an optimiser step.

    Raises:
        ValueError: there is no stream, an empty one, or a number out of range.
    """

    def __init__(
        self, streams: Sequence[Stream], *, batch_size: int, seed: int, world_size: int = 1, accumulation: int = 1
    ):
        n = min((len(stream.indices) for stream in streams), default=0)
        check_numbers(n=n, batch_size=batch_size, world_size=world_size)
        self.streams = tuple(streams)
        self.batch_size, self.world_size = batch_size, world_size
        self.seed = seed
        self._spans = [
            _Span(
                phase=phase,
                first=phase.start * accumulation,
                end=None if phase.end is None else phase.end * accumulation,
                turns=WeightedInterleaver([self.streams[i].weight for i in phase.active], seed, key),
            )
            for key, phase in enumerate(phases(self.streams))
        ]

    def batches(self, rank: int = 0, start: int = 0) -> Iterator[list[SampleDraw]]:
        """Yield batches of one process, from micro-step `start` on; they end only where no stream is drawn any more.

        A stream smaller than a batch fills it from its next epochs. Raises ValueError for numbers out of range.
        """
        check_numbers(n=1, batch_size=self.batch_size, world_size=self.world_size, rank=rank, start=start)
        return self._batches(rank, start)

    def epoch_at(self, micro_step: int) -> float:
        """Return how many epochs have been read when `micro_step` micro-steps are done.

        An epoch has as many samples as there are records, repeats included, in the streams that are drawn at the time.
        """
        epochs = 0.0
        for span in self._spans:
            steps = (micro_step if span.end is None else min(micro_step, span.end)) - span.first
            samples = sum(len(self.streams[i].indices) for i in span.phase.active)
            if steps > 0 and samples:
                epochs += steps * self.batch_size * self.world_size / samples
        return epochs

    def _batches(self, rank: int, micro_step: int) -> Iterator[list[SampleDraw]]:
        done = [0] * len(self.streams)
        orders = [Order(len(stream.indices), self.seed, i) for i, stream in enumerate(self.streams)]
        size = self.batch_size
        for span in self._spans:
            if not span.phase.active:
                return
            if span.end is not None and span.end <= micro_step:
                span.count(done, span.end)
                continue
            turns = span.count(done, micro_step)
            while span.end is None or micro_step < span.end:
                stream = span.phase.active[next(turns)]
                samples = orders[stream].samples((done[stream] * self.world_size + rank) * size, size)
                place = (micro_step * self.world_size + rank) * size
                indices = self.streams[stream].indices
                yield [SampleDraw(int(indices[sample]), place + i) for i, sample in enumerate(samples)]
                done[stream] += 1
                micro_step += 1


@dataclass(frozen=True, kw_only=True)
class _Span:
    """Covers a phase in micro-steps, from `first` to before `end`."""

    phase: Phase
    first: int
    end: int | None
    turns: WeightedInterleaver

    def count(self, done: list[int], micro_step: int) -> Iterator[int]:
        """Add to each stream's `done` the draws up to `micro_step`; return an iterator over the draws that follow."""
        counts, following = self.turns.after(micro_step - self.first)
        for stream, turns in zip(self.phase.active, counts, strict=True):
            done[stream] += turns
        return following
