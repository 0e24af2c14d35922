"""What the evidence of adjoint matching computes from what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.adjoint import counted
from benchmarks.evidence_adjoint_matching import (
    ANCHOR,
    ARMS,
    FREE,
    GATE,
    RECIPE,
    SIGMA,
    Measured,
    overrides,
    publish,
    verdict,
    within,
)
from flowhooks.commands.demo import planned_lora


def measured(reward: float, diversity: float) -> Measured:
    return Measured(reward=reward, diversity=diversity, frechet=50.0, digit_accuracy=0.9, seconds=60.0)


BEFORE = measured(-0.5, 200.0)
FOUND = {arm: [measured(-0.2, 170.0), measured(-0.2, 165.0)] for arm in ARMS}
FOUND[FREE] = [measured(-0.1, 100.0), measured(0.0, 90.0)]


def runs() -> dict:
    return {arm: planned_lora(Path("out"), Path("base"), overrides(arm, 0), RECIPE)[1] for arm in ARMS}


def test_diversity_is_the_variance_within_a_class():
    classes = torch.tensor([0, 1, 0, 1])
    features = torch.tensor([[0.0, 5.0], [10.0, 0.0], [2.0, 5.0], [10.0, 4.0]])
    assert within(features, classes) == pytest.approx((2 + 8) / 2)


@pytest.mark.parametrize(
    ("anchor", "reached"),
    [((-0.2, 160.0), True), ((-0.2, 158.0), False), ((-0.28, 190.0), False), ((-0.27, 190.0), True)],
)
def test_the_goal_takes_diversity_and_half_of_the_gain(anchor, reached):
    found = {ANCHOR: [measured(*anchor)], FREE: FOUND[FREE]}
    assert verdict(BEFORE, found)[0] == reached


def test_arms_are_what_the_page_says_they_are():
    hooks = {arm: {hook.type: hook.options for hook in run.hooks} for arm, run in runs().items()}
    rollouts = {arm: own["on_policy_rollout"] for arm, own in hooks.items()}
    assert {arm: own["early_visits"] > 0 for arm, own in rollouts.items()} == {
        arm: arm in (ANCHOR, "untruncated") for arm in ARMS
    }
    assert [arm for arm in ARMS if "adapter_gate" in hooks[arm]] == [GATE]
    assert rollouts[GATE]["sigma_max"] == hooks[GATE]["adapter_gate"]["sigma"] == SIGMA
    assert rollouts["untruncated"]["last_steps"] == rollouts[ANCHOR]["num_inference_steps"]
    assert {arm: own["adjoint_target"]["adjoint"] for arm, own in hooks.items()} == {
        **dict.fromkeys(ARMS, "lean"),
        "lookahead": "lookahead",
        "DRaFT-K": "full",
    }


def test_table_plot_and_numbers_are_written(tmp_path):
    publish(tmp_path, BEFORE, FOUND, [0, 1], runs())
    page = (tmp_path / "adjoint_matching.md").read_text(encoding="utf-8")
    assert "Reached: it keeps 84% of the base's diversity (goal 80%; *free* keeps 48%) at 67% of the gain" in page
    assert page.count("\n| ") == 2 + 1 + len(ARMS)
    assert json.loads((tmp_path / "adjoint_matching.json").read_text(encoding="utf-8"))["seeds"] == [0, 1]
    assert (tmp_path / "adjoint_matching.png").stat().st_size > 10_000


def test_what_truncation_should_save():
    assert (counted(28, 28), counted(28, 3)) == (194, 44)
