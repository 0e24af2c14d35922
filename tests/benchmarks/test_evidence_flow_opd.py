"""What the evidence of Flow-OPD computes from what it measured."""

from __future__ import annotations

import json

import pytest

from benchmarks.evidence_flow_opd import (
    MERGE,
    MIXED,
    ROWS,
    SHORT,
    STUDENT,
    TEACHERS,
    WITH,
    WITHOUT,
    Measured,
    average,
    fractions,
    mixed_overrides,
    publish,
    verdict,
)
from flowhooks.config import load_run
from flowhooks.digits.model import example


def measured(legible: float, bold: float, drift: float = 80.0, frechet: float | None = None) -> Measured:
    return Measured(
        rewards={"legible": legible, "bold": bold},
        frechet=drift if frechet is None else frechet,
        own_frechet={"legible": 2 * drift - 20, "bold": 20},
        digit_accuracy=0.9,
    )


BEFORE = measured(-0.5, 0.3)
FOUND = {
    "teacher legible": [measured(-0.1, 0.3), measured(-0.3, 0.3)],
    "teacher bold": [measured(-0.9, 0.5), measured(-0.9, 0.4)],
    MERGE: [measured(-0.3, 0.4), measured(-0.4, 0.35)],
    SHORT: [measured(-0.4, 0.4)],
    MIXED: [measured(-0.5, 0.5), measured(-0.5, 0.4)],
    WITH: [measured(-0.1, 0.5, 40.0), measured(-0.3, 0.4, 40.0)],
    WITHOUT: [measured(-0.1, 0.5, 41.0), measured(-0.3, 0.4, 42.0)],
}


def test_a_fraction_is_of_the_gain_of_the_own_teacher_of_the_same_seed():
    shares = fractions(BEFORE, FOUND, MERGE)
    assert [each[task] for each in shares for task in TEACHERS] == pytest.approx([0.5] * 4)
    assert fractions(BEFORE, FOUND, "teacher bold")[0] == pytest.approx({"legible": -1, "bold": 1})


def test_more_than_the_teachers_gain_pays_for_nothing():
    assert average([{"legible": -1.0, "bold": 9.0}, {"legible": 0.8, "bold": 1.0}]) == pytest.approx([0.0, 0.9])


def test_the_goal_is_reached_when_every_part_is():
    reached, sentences = verdict(BEFORE, FOUND)
    assert reached and len(sentences) == 7
    assert (
        "merge at 50% (2 of 2 seeds)" in sentences[2] and "mixed rewards, short at 38% (1 of 1 seeds)" in sentences[3]
    )


@pytest.mark.parametrize(
    "row, instead",
    [
        (WITH, measured(-0.13, 0.5, 40.0)),
        (WITH, measured(-0.1, 0.5, 43.0, frechet=40.0)),
        (WITH, measured(-0.1, 0.5, 40.0, frechet=43.0)),
        (MERGE, measured(-0.1, 0.5)),
        (MIXED, measured(-0.1, 0.5)),
    ],
)
def test_the_goal_is_not_reached_when_one_part_is_not(row, instead):
    found = {name: [each[0]] for name, each in FOUND.items()}
    assert verdict(BEFORE, found)[0]
    assert not verdict(BEFORE, {**found, row: [instead]})[0]


def test_the_anchor_must_help_at_every_seed():
    found = {**FOUND, WITH: [measured(-0.1, 0.5, 30.0), measured(-0.3, 0.4, 43.0)]}
    reached, sentences = verdict(BEFORE, found)
    assert not reached
    assert "by task is 36.5 with the anchor and 41.5 without, of one seed 5.0; -1.0 to 11.0 less" in sentences[5]


def test_the_mixed_run_takes_both_rewards_and_the_forwards_of_both_teachers():
    runs = {task: load_run(example(recipe)) for task, recipe in TEACHERS.items()}
    mixed = load_run(example(TEACHERS["legible"]), mixed_overrides(runs, short=False))
    blocks = next(hook.options["rewards"] for hook in mixed.hooks if hook.type == "flow_grpo")
    assert [block["type"].partition(":")[2] for block in blocks] == ["Legibility", "Ink"]
    assert blocks[1]["weight"] > blocks[0]["weight"] > 1
    assert mixed.training["learning_rate"] == min(run.training["learning_rate"] for run in runs.values())
    assert mixed.training["max_train_steps"] == sum(run.training["max_train_steps"] for run in runs.values())


def test_the_short_mixed_run_ends_with_the_shorter_teacher():
    runs = {task: load_run(example(recipe)) for task, recipe in TEACHERS.items()}
    short = load_run(example(TEACHERS["legible"]), mixed_overrides(runs, short=True))
    assert short.training["max_train_steps"] == min(run.training["max_train_steps"] for run in runs.values())


def test_every_digit_is_of_one_task():
    student = load_run(example(STUDENT))
    asked = next(hook.options["prompts"] for hook in student.hooks if hook.type == "on_policy_rollout")
    assert len({entry["prompt"] for entry in asked}) == len(asked) == 10
    assert {entry["task"] for entry in asked} == set(TEACHERS)


def test_table_plot_and_numbers_are_written(tmp_path):
    assert set(FOUND) == set(ROWS)
    publish(tmp_path, BEFORE, FOUND, dict.fromkeys(FOUND, 1000), [0, 1])
    page = (tmp_path / "flow_opd.md").read_text(encoding="utf-8")
    assert "at every seed. Reached:\nit reaches 100%" in page
    assert page.count("\n| ") == 2 + 1 + len(ROWS)
    assert json.loads((tmp_path / "flow_opd.json").read_text(encoding="utf-8"))["seeds"] == [0, 1]
    assert (tmp_path / "flow_opd.png").stat().st_size > 10_000
