"""Batches of several data sets, sizes and times."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowhooks.data import Schedule, Stream, batch_plan
from flowhooks.data.buckets import small_bucket_warning
from flowhooks.data.schedule import WeightedInterleaver

seeds = st.integers(0, 2**32 - 1)
worlds = st.integers(1, 3)
batch_sizes = st.integers(1, 4)


@st.composite
def several(draw, timed: bool = True) -> list[Stream]:
    """Streams over records that no two of them share, of which one is always drawn."""
    found, first = [], 0
    for number in range(draw(st.integers(1, 5))):
        n = draw(st.integers(1, 12))
        start = draw(st.integers(0, 6)) if timed and number else 0
        end = draw(st.none() | st.integers(start + 1, 12)) if timed and number else None
        weight = draw(st.sampled_from([0.25, 1.0, 3.7]))
        indices = range(first, first + n)
        found.append(Stream(indices=indices, probability=weight, start_step=start, end_step=end))
        first += n
    return draw(st.permutations(found))


def read(schedule: Schedule, steps: int, rank: int = 0, start: int = 0) -> list[list[int]]:
    return [[visit.record for visit in batch] for batch in islice(schedule.batches(rank, start), steps)]


@given(several(), batch_sizes, worlds, seeds, st.integers(1, 3))
def test_every_epoch_of_every_stream_holds_every_sample_once_and_a_batch_one_stream(
    streams, batch, world, seed, accumulation
):
    schedule = Schedule(streams, batch_size=batch, seed=seed, world_size=world, accumulation=accumulation)
    ranks = [read(schedule, 60, rank) for rank in range(world)]
    stream_of = {index: i for i, stream in enumerate(streams) for index in stream.indices}
    seen: dict[int, list[int]] = {i: [] for i in range(len(streams))}
    for micro_step, batches in enumerate(zip(*ranks, strict=True)):
        together = [index for each in batches for index in each]
        (number,) = {stream_of[index] for index in together}
        stream, step = streams[number], micro_step // accumulation
        assert stream.start_step <= step and (stream.end_step is None or step < stream.end_step)
        seen[number] += together
    for number, order in seen.items():
        n = len(streams[number].indices)
        for epoch in range(len(order) // n):
            assert sorted(order[epoch * n : (epoch + 1) * n]) == list(streams[number].indices)
        rest = order[len(order) // n * n :]
        assert len(set(rest)) == len(rest)


@given(several(), batch_sizes, worlds, seeds, st.integers(1, 3), st.integers(0, 50))
def test_one_process_sees_what_several_see_and_a_resumed_one_goes_on(streams, batch, world, seed, accumulation, start):
    alone = Schedule(streams, batch_size=batch * world, seed=seed, accumulation=accumulation)
    whole = list(islice(alone.batches(), start + 5))
    assert list(islice(alone.batches(start=start), 5)) == whole[start:]
    assert [visit.place for batches in whole for visit in batches] == list(range(len(whole) * batch * world))
    shared = Schedule(streams, batch_size=batch, seed=seed, world_size=world, accumulation=accumulation)
    ranks = [list(islice(shared.batches(rank, start), 5)) for rank in range(world)]
    assert [sum(batches, []) for batches in zip(*ranks, strict=True)] == whole[start:]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), seeds)
def test_turns_keep_to_their_shares_at_every_moment(weights, seed):
    _, following = WeightedInterleaver(weights, seed).after(0)
    done = [0] * len(weights)
    for turn in islice(following, 300):
        done[turn] += 1
        for count, weight in zip(done, weights, strict=True):
            share = weight / sum(weights)
            assert abs(count - share * sum(done)) <= 1 + share * (len(weights) - 2) + 1e-9


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), seeds, st.integers(0, 200))
def test_turns_are_found_anywhere_at_once(weights, seed, done):
    _, following = WeightedInterleaver(weights, seed).after(0)
    order = list(islice(following, done + 20))
    counts, rest = WeightedInterleaver(weights, seed).after(done)
    assert counts == [order[:done].count(number) for number in range(len(weights))]
    assert list(islice(rest, 20)) == order[done:]
    far, _ = WeightedInterleaver(weights, seed).after(10**9)
    assert far == pytest.approx([10**9 * weight / sum(weights) for weight in weights], abs=len(weights))


def test_the_share_of_a_stream_is_probability_times_samples():
    streams = [Stream(indices=range(30)), Stream(indices=range(30, 40), probability=3.0)]
    schedule = Schedule(streams, batch_size=2, seed=1)
    drawn = Counter(index < 30 for batch in read(schedule, 1000) for index in batch)
    assert drawn == {True: 1000, False: 1000}
    equal = Schedule([Stream(indices=[i]) for i in range(4)], batch_size=1, seed=1)
    rounds = [tuple(sum(read(equal, 4, start=4 * i), [])) for i in range(6)]
    assert all(sorted(each) == [0, 1, 2, 3] for each in rounds) and len(set(rounds)) > 1


@given(st.integers(1, 40), batch_sizes, worlds, seeds)
def test_one_stream_is_drawn_in_the_order_of_one_data_set(n, batch, world, seed):
    schedule = Schedule([Stream(indices=range(n))], batch_size=batch, seed=seed, world_size=world)
    assert read(schedule, 20, rank=world - 1) == list(islice(batch_plan(n, batch, seed, world, world - 1), 20))


def test_the_order_of_a_seed_does_not_change_between_releases():
    streams = [Stream(indices=range(3)), Stream(indices=range(3, 5), probability=2.0, start_step=2)]
    order = sum(read(Schedule(streams, batch_size=2, seed=0), 8), [])
    assert order == [2, 0, 1, 2, 4, 3, 0, 1, 3, 4, 2, 1, 3, 4, 4, 3]


def test_an_epoch_is_as_many_samples_as_there_are_records_to_draw():
    streams = [
        Stream(indices=range(100)),
        Stream(indices=range(100, 400), probability=5.0, start_step=5),
        Stream(indices=range(400, 500), end_step=5),
    ]
    schedule = Schedule(streams, batch_size=5, seed=0, world_size=4, accumulation=2)
    assert [schedule.epoch_at(step) for step in (0, 5, 10, 30, 50)] == pytest.approx([0, 0.5, 1, 2, 3])


def test_the_order_ends_where_nothing_is_drawn_any_more():
    schedule = Schedule([Stream(indices=range(3), end_step=2)], batch_size=1, seed=0, accumulation=3)
    assert len(read(schedule, 100)) == 6 and read(schedule, 100, start=6) == []


@pytest.mark.parametrize("numbers", [{"batch_size": 0}, {"world_size": 0}, {"streams": []}, {"streams": [range(0)]}])
def test_numbers_out_of_range_are_refused_at_once(numbers):
    numbers = {"streams": [range(4)], "batch_size": 2, **numbers}
    streams = [Stream(indices=each) for each in numbers.pop("streams")]
    with pytest.raises(ValueError, match="expected n, batch_size"):
        Schedule(streams, seed=0, **numbers)
    with pytest.raises(ValueError, match="expected n, batch_size"):
        Schedule([Stream(indices=range(2))], batch_size=1, seed=0).batches(rank=1)


def test_streams_smaller_than_what_a_micro_step_draws_are_told():
    streams = [Stream(indices=range(3)), Stream(indices=range(8))]
    assert small_bucket_warning(streams, 3) is None
    assert "draws 4 samples" in small_bucket_warning(streams, 4) and "1 of 2 groups" in small_bucket_warning(streams, 4)
