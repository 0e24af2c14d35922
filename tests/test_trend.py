"""Warnings speak of running means, after enough logged steps."""

from __future__ import annotations

import math

import pytest

from flowhooks.kernel.assembly import Assembly
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import Declaration, Plan
from flowhooks.kernel.session import Session
from flowhooks.train.report import health_names
from flowhooks.trend import Trend


class Talks(Hook):
    type = "talks"
    health = "talks_well_being"

    def metrics(self, step):
        return {}

    def warnings(self, metrics):
        return [f"{name} is {value:.3f}" for name, value in metrics.items()]


def session() -> Session:
    talks = Declaration(type="talks", where="hooks[0]", slots=frozenset({"metrics"}))
    made = Plan(order=(talks,), passes=(("main", "policy"),))
    return Session(model=None, assembly=Assembly(made, [Talks()]), roles={}, parameters={})


def test_a_mean_forgets_and_leaves_out_what_is_not_finite():
    trend = Trend(decay=0.5)
    for value in (1.0, math.nan, 3.0, math.inf):
        trend.update({"a": value})
    assert trend.means(2) == {"a": pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75)} and trend.means(3) == {}


def test_one_odd_step_makes_no_warning_and_a_lasting_state_does():
    one = session()
    assert all(one.warnings({"a": 1.0}) == [] for _ in range(9))
    assert one.warnings({"a": 1.0}) == ["a is 1.000"]
    assert 0.8 < float(one.warnings({"a": 0.0})[0].split()[-1]) < 1


def test_a_resumed_run_goes_on_with_its_means():
    whole, first, second = session(), session(), session()
    values = [float(i % 3) for i in range(20)]
    for value in values[:12]:
        whole.warnings({"a": value})
        first.warnings({"a": value})
    second.load_state_dict(first.state_dict())
    assert [whole.warnings({"a": v}) for v in values[12:]] == [second.warnings({"a": v}) for v in values[12:]]
    earlier = {key: value for key, value in first.state_dict().items() if key != "trend"}
    second.load_state_dict(earlier)


def test_health_is_named_for_people():
    assert health_names(session().assembly.hooks) == {"talks_well_being": "well being"}
