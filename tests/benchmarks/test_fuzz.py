"""A few damaged inputs for every reader; `python -m benchmarks.fuzz` gives many."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.fuzz import Count, _limit, _quiet, _try, fuzz
from benchmarks.fuzz_targets import TARGETS, Target, build

ROOT = Path(__file__).parents[2]
EACH = 20
#: A shard is made again, lines of metrics are dropped, and `check` leaves it to `train` to read all settings.
UNREFUSED = ("shard", "metrics", "network", "vae", "scheduler")


@pytest.mark.parametrize("seed", [1])
def test_damaged_input_gives_our_own_errors(tmp_path, seed):
    counts = fuzz(EACH * len(TARGETS), seed, tmp_path)
    assert {name: count.faults for name, count in counts.items() if count.faults} == {}
    assert {count.tried for count in counts.values()} == {EACH}
    assert all(count.refused for name, count in counts.items() if name not in UNREFUSED)


def test_sound_input_is_taken(tmp_path):
    """Else every input would be refused for the same reason, and nothing be tried."""
    for name, target in build(tmp_path).items():
        for given in target.sound:
            with _limit(), _quiet():
                target.read(given)
        assert target.damage(random.Random(3)) == target.damage(random.Random(3)), name


def test_what_is_not_our_own_counts_as_a_fault(tmp_path):
    def fails(data: bytes) -> None:
        raise RecursionError

    count = Count()
    _try(Target((), lambda draw: b"input", fails), count, 7, 0, tmp_path)
    assert "RecursionError" in count.faults[7] and (tmp_path / "7").read_bytes() == b"input"


def test_the_evidence_has_no_fault():
    found = json.loads((ROOT / "docs" / "evidence" / "fuzz.json").read_text(encoding="utf-8"))
    assert found["tried"] == found["survived"] >= 50_000 and set(found["targets"]) == set(TARGETS)
