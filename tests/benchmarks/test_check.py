"""Counts of every method's step are no worse than the committed ones."""

from __future__ import annotations

import copy
import json

import pytest

from benchmarks import counts
from benchmarks.__main__ import COUNTS, parser
from tests.forked import side_by_side


def _check(rank: int) -> None:
    assert counts.check(parser().parse_args(["check"])) == 0


@pytest.mark.slow
def test_no_count_is_worse_than_the_committed_one():
    """In a process of its own, which the pretended device stays in."""
    side_by_side(_check, count=1)


@pytest.fixture
def committed():
    return json.loads(COUNTS.read_text(encoding="utf-8"))["counts"]


def test_a_count_that_grew_is_worse_and_one_that_fell_is_not(committed):
    now = copy.deepcopy(committed)
    now["sft"]["waits"] += 1
    now["flow_dpo"]["forwards"] -= 1
    before = committed["sft"]["waits"]
    assert counts.worse(committed, now) == [f"sft: waits {before + 1}, committed {before}"]


def test_a_method_that_nobody_committed_to_is_told(committed):
    now = {**committed, "new": {"forwards": 3}}
    del now["sft"]
    assert counts.worse(committed, now) == [
        "new: forwards 3, and none is committed",
        "sft: committed, and not measured",
    ]


@pytest.mark.parametrize("what", ["recompilations", "graph breaks", "waits", "forwards", "allocations"])
def test_every_kind_of_count_is_committed_and_a_rise_fails(committed, what):
    now = copy.deepcopy(committed)
    name = next(name for name, counts in committed.items() if what in counts)
    now[name][what] = 2 * now[name][what] + 1
    assert counts.worse(committed, now) == [f"{name}: {what} {now[name][what]:,}, committed {committed[name][what]:,}"]
