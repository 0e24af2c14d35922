"""What the evidence of an edit model trains on, and what it computes from what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evidence_edit import ARMS, FIRST, SLOPPY, Bench, _edits, ink, paper
from benchmarks.evidence_edit_page import BEFORE, DPO, EQUAL, SAME, changes, page, verdict

EVIDENCE = Path(__file__).resolve().parents[2] / "docs" / "evidence"


@pytest.fixture(scope="module")
def facts():
    return json.loads((EVIDENCE / "edit.json").read_text(encoding="utf-8"))


def test_an_edit_differs_from_the_scan_under_the_blot_only(tmp_path):
    scan, opacity = paper(Bench(output=tmp_path).scans[0][3]), ink(3, 0)
    covered = opacity > 0
    kinds = {kind: _edits(scan, opacity, place) for place, kind in enumerate(SLOPPY)}
    for edits in kinds.values():
        assert all((edits[name][~covered] == scan[~covered]).all() for name in ("source", "edited", "good", "bad"))
        assert (edits["good"] == scan).all() and ((edits["where"] == 255) == covered).all()
        assert (edits["bad"] != scan).any() and (edits["source"] != scan).any()
    assert (kinds[None]["edited"] == scan).all()
    assert (kinds["left"]["edited"] == kinds["left"]["source"]).all()
    assert (kinds["wiped"]["edited"][covered] == 255).all()


def test_references_that_are_reported_were_seen_by_nobody(tmp_path):
    reported, choosing = Bench(output=tmp_path), Bench(output=tmp_path, choosing=True)
    assert len(reported.held.source) == reported.held.blot.shape[0] == len(reported.held.digits)
    assert ((reported.held.source != reported.held.clean).any(1, keepdim=True) <= reported.held.blot).all()
    scans = {bench.choosing: {each.numpy().tobytes() for each in bench.held.clean} for bench in (reported, choosing)}
    assert not scans[True] & scans[False]
    trained = {
        np.float32(paper(reported.scans[0][i]).transpose(2, 0, 1) / 127.5 - 1).tobytes() for i in reported.learnt
    }
    assert not trained & scans[False]


def test_all_arms_cost_the_same():
    """Forwards of a batch: 8 for a step of Flow-DPO, 3 for one of SFT."""
    cost = {arm: ARMS[arm]["training"]["max_train_steps"] * (8 if arm == DPO else 3) for arm in ARMS}
    assert cost[EQUAL] == cost[SAME] and abs(cost[DPO] - cost[EQUAL]) < 3
    rest = [{k: v for k, v in ARMS[arm]["training"].items() if k != "max_train_steps"} for arm in ARMS]
    assert rest[0] == rest[1] == rest[2]


def test_a_verdict_calls_better_only_what_all_seeds_agree_on():
    rows = {"blots_left": 0.2, "digits_kept": 0.9, "error_inside": 0.1, "changed_outside": 0.03}
    other = [{**rows, "blots_left": 0.3}, {**rows, "blots_left": 0.4, "digits_kept": 0.95}]
    found = {"arms": {DPO: [rows, rows], EQUAL: other}}
    assert changes(found, DPO, EQUAL, "blots_left") == pytest.approx([-0.1, -0.2])
    said = verdict(found, DPO, EQUAL)
    assert "blots left -15.0 (-20.0 to -10.0), better" in said
    assert "digits kept -2.5 (-5.0 to +0.0), not clearly different" in said
    assert "worse" not in said


def test_the_page_is_that_of_the_numbers(facts):
    assert page(facts) == (EVIDENCE / "edit.md").read_text(encoding="utf-8")
    assert facts["runs"] == json.loads(json.dumps({BEFORE: FIRST, **ARMS})), "run the evidence again"
    assert len(facts["seeds"]) == 3 and set(facts["arms"]) == {BEFORE, *ARMS}
