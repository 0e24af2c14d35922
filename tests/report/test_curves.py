"""Curves are thinned without losing a spike, and every metric has its figure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowhooks.hooks.registry import HOOKS, hook_class
from flowhooks.report.content import figures
from flowhooks.report.curves import FEW, POINTS, curve
from flowhooks.report.figures import FIGURES, figures_for, label
from flowhooks.report.record import read_record
from tests.report.folders import dpo_values, write_finished


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 3 * POINTS), every=st.integers(1, 50), seed=st.integers(0, 9))
def test_a_thinned_curve_keeps_its_extremes_and_its_mean(count, every, seed):
    values = np.random.default_rng(seed).normal(size=count)
    steps = np.arange(1, count + 1) * every
    found = curve(steps, values)
    assert len(found.x) == len(found.y) == len(found.low) == len(found.high) <= POINTS
    assert min(found.low) == pytest.approx(values.min(), rel=1e-5)
    assert max(found.high) == pytest.approx(values.max(), rel=1e-5)
    assert all(low <= high for low, high in zip(found.low, found.high, strict=True))
    assert found.x == sorted(found.x) and found.count == count
    if count <= POINTS:
        assert found.x == steps.tolist() and found.low == pytest.approx(values, rel=1e-5) and not found.bins
    if count < FEW:
        assert found.y == found.low


def test_one_spike_among_a_hundred_thousand_steps_is_seen():
    values = np.zeros(100_000)
    values[77_777] = 9.0
    found = curve(np.arange(100_000), values)
    assert max(found.high) == 9.0 and max(found.y) == pytest.approx(9 / 250, rel=0.01) and found.bins == 250


def test_the_line_of_a_straight_curve_does_not_lag_behind():
    values = np.arange(100) / 100
    found = curve(np.arange(100), values)
    assert found.y[5:-5] == pytest.approx(values[5:-5].tolist())
    assert curve(np.arange(100), values, smooth=False).y == values.tolist()


def test_each_metric_stands_in_one_figure():
    names = [*dpo_values(1, 10), "val/flow_dpo_margin", "val/loss", "val/distance_4_steps", "my_metric", "val/mine"]
    found = list(figures_for(names, {"my_metric": "mine"}))
    shown = [name for _, metrics in found for name in metrics]
    assert sorted(shown) == sorted(set(names) - {"epoch"})
    titles = [figure.title for figure, _ in found]
    assert titles[:3] == ["Mine", "Implicit accuracy", "Margin"], "the user's own hook comes first"
    (margin,) = (metrics for figure, metrics in found if figure.title == "Margin")
    assert margin == ["flow_dpo_margin", "val/flow_dpo_margin"]


def test_a_spread_of_rewards_is_no_reward():
    names = ["flow_grpo_reward", "flow_grpo_reward_ink", "flow_grpo_reward_spread"]
    found = {figure.title: metrics for figure, metrics in figures_for(names, {})}
    assert found == {"Reward": names[:2], "Spread of rewards": names[2:]}


def test_what_a_hook_is_judged_by_has_a_figure_of_its_own_name():
    health = {hook_class(kind, "$").health for kind in HOOKS} - {""}
    assert len(health) > 5
    assert [name for name in health if not any(name in figure.metrics for figure in FIGURES)] == []


def test_labels_say_what_sets_a_line_apart():
    bands = next(each for each in FIGURES if each.title == "Margin by noise level")
    assert label(bands, "flow_dpo_margin_sigma_0.25_0.50", ["a", "b"]) == "0.25 to 0.5"
    gaps = next(each for each in FIGURES if each.title == "Gap to the teacher")
    names = ["flow_opd_gap", "flow_opd_gap_bold", "val/flow_opd_gap"]
    assert [label(gaps, name, names) for name in names] == ["gap", "bold", "gap, held out"]


def test_several_runs_have_a_figure_for_each_metric(tmp_path):
    records = [read_record(write_finished(tmp_path / name, steps=4, seed=i)) for i, name in enumerate("ab")]
    found = figures(records)
    assert all([line["label"] for line in each["series"]] == ["a", "b"] for each in found)
    assert "Advantages: preferred" in [each["title"] for each in found]
