from __future__ import annotations

from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowhooks.data import batch_plan

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32)


def stream(n: int, batch: int, seed: int, steps: int, **options: int) -> list[int]:
    return list(chain.from_iterable(islice(batch_plan(n, batch, seed, **options), steps)))


@given(n=sizes, batch=st.integers(1, 50), seed=seeds)
def test_every_epoch_holds_every_sample_once(n, batch, seed):
    """No sample dropped at an epoch's end, none twice in an epoch, also where a batch is larger than the data set."""
    steps = -(-3 * n // batch)
    order = stream(n, batch, seed, steps)
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


@given(n=sizes, batch=st.integers(1, 8), world=st.integers(1, 5), seed=seeds, steps=st.integers(1, 12))
def test_ranks_together_see_the_order_of_one_process(n, batch, world, seed, steps):
    plans = [batch_plan(n, batch, seed, world, rank) for rank in range(world)]
    together = [index for _ in range(steps) for plan in plans for index in next(plan)]
    assert together == stream(n, batch * world, seed, steps)


@given(n=sizes, batch=st.integers(1, 8), seed=seeds, start=st.integers(0, 30), rank=st.integers(0, 2))
def test_a_resumed_plan_goes_on_where_it_stopped(n, batch, seed, start, rank):
    whole = list(islice(batch_plan(n, batch, seed, 3, rank), start + 5))
    assert list(islice(batch_plan(n, batch, seed, 3, rank, start), 5)) == whole[start:]


def test_epochs_and_seeds_differ():
    order = stream(50, 10, 7, 10)
    assert order[:50] != order[50:]
    assert order[:50] != stream(50, 10, 8, 5)


def test_the_order_of_a_seed_does_not_change_between_releases():
    assert stream(6, 3, 0, 4) == [3, 2, 5, 4, 0, 1, 1, 4, 3, 0, 2, 5]


def test_two_ranks_never_share_a_sample_within_an_epoch():
    seen = Counter(chain(stream(24, 4, 0, 3, world_size=2, rank=0), stream(24, 4, 0, 3, world_size=2, rank=1)))
    assert set(seen.values()) == {1} and len(seen) == 24


@pytest.mark.parametrize(
    "numbers", [{"n": 0}, {"batch_size": 0}, {"world_size": 0}, {"rank": 2}, {"rank": -1}, {"start": -1}]
)
def test_numbers_out_of_range_are_refused_at_once(numbers):
    with pytest.raises(ValueError, match="expected n, batch_size"):
        batch_plan(**{"n": 4, "batch_size": 2, "seed": 0, "world_size": 2, "rank": 0, "start": 0, **numbers})
