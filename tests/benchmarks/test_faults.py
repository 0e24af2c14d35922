"""Faults and long runs are tried at all, a few of them; `python -m benchmarks.faults` tries all."""

from __future__ import annotations

import json

import pytest

from benchmarks import faults, soak
from benchmarks.faults_cases import FAULTS
from benchmarks.reliability import write_page
from flowhooks.methods import METHODS


def test_every_method_is_killed():
    assert {name.removeprefix("kill ") for name in FAULTS if name.startswith("kill ")} == set(METHODS)


@pytest.mark.slow
def test_a_few_faults_are_survived_and_a_page_says_so(tmp_path):
    only = [word for name in ("kill sft", "hang", "cut checkpoint", "tracker") for word in ("--only", name)]
    assert faults.main(["--quick", *only, "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["kill sft", "hang", "cut checkpoint", "tracker"]
    assert all(row["tried"] == row["survived"] > 0 for row in rows)
    assert rows[1]["outcomes"] == {"ended and resumed": 1} and rows[1]["longest_seconds"] < 60
    write_page(tmp_path / "page.md", tmp_path)
    assert "a tracker that raises | 1 | 1 | went on 1" in (tmp_path / "page.md").read_text()


def test_a_slope_is_that_of_the_line_and_its_interval_holds_it():
    steps = [float(step) for step in range(200)]
    bumps = [(7 * step) % 11 for step in range(200)]
    middle, low, high = soak.slope(steps, [3 * step + bump for step, bump in zip(steps, bumps, strict=True)])
    assert low < 3 < high and middle == pytest.approx(3, abs=0.02)
    middle, low, high = soak.slope(steps, bumps)
    assert low < 0 < high


def test_what_grows_is_told_from_what_does_not():
    found = [{"step": float(i), "resident memory": 5e8 + (i * 7) % 11, "trackers": 90.0 * i} for i in range(1, 101)]
    memory, trackers = soak.rows_of(found)
    assert memory["reading"] == "flat"
    assert trackers["reading"] == "grows" and trackers["slope"].startswith("90 (90 to 90) B a step")
