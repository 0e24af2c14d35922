"""Targets of adjoint matching on tiny pipelines, against autograd through loops written by hand."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from flowhooks.hooks.adjoint import optimal_control
from flowhooks.testing.matrix import learnt
from tests.hooks.adjoint_runs import ROLLOUT, STEPS, ByHand, moved, run_through, target
from tests.hooks.test_on_policy import document, watched
from tests.sampling.test_rollout import GUIDED


def assert_targets(steps, hand, costates, powers):
    for step in steps:
        index = step.views["main"].visit.index
        with torch.no_grad():
            base = hand.velocity(hand.rollout.states[index], index, "reference")
        control = base - step.target("main")
        expected = optimal_control(costates[index], powers)
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(control, expected, rtol=2e-2, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_lean_targets(name, guided):
    model = learnt(name)
    rollout = {**ROLLOUT, "pipeline_arguments": GUIDED[name]} if guided else ROLLOUT
    if guided and name == "flux":
        rollout["pipeline_arguments"] = {key: v for key, v in GUIDED[name].items() if key != "guidance_scale"}
    with flowhooks.attach(model, document(rollout, target())) as session:
        moved(session)
        steps = run_through(session)
        assert [step.views["main"].visit.index for step in steps] == [2, 3, 4]
        hand = ByHand(session, steps)
        assert_targets(steps, hand, hand.lean(), {2: 1.0})
        policy = hand.velocity(hand.rollout.states[2], 2, "policy")
        torch.testing.assert_close(steps[0].predict("main"), policy, rtol=1e-3, atol=1e-4)
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
@pytest.mark.parametrize("powers", [{"2": 1.0}, {"2": 1.0, "4": 0.3}], ids=["square", "mixed"])
def test_full_targets(name, powers):
    model = learnt(name)
    with flowhooks.attach(model, document(ROLLOUT, target(adjoint="full", regularizer=powers))) as session:
        moved(session)
        steps = run_through(session)
        hand, powers = ByHand(session, steps), {float(p): weight for p, weight in powers.items()}
        assert_targets(steps, hand, hand.full(powers), powers)


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_lookahead_targets(name):
    model = learnt(name)
    with flowhooks.attach(model, document(ROLLOUT, target(adjoint="lookahead"))) as session:
        moved(session)
        steps = run_through(session)
        hand = ByHand(session, steps)
        assert_targets(steps, hand, hand.lookahead(), {2: 1.0})


@pytest.mark.parametrize("early", [0, 2])
def test_states_before_the_end_are_held_at_the_base(early):
    model = learnt("sd3")
    with flowhooks.attach(model, document({**ROLLOUT, "early_visits": early}, target())) as session:
        moved(session)
        with watched(session) as steps:
            results = list(session.steps(None))
        assert len(steps) == 3 + early
        hand = ByHand(session, steps)
        for step, result in zip(steps, results, strict=True):
            index = step.views["main"].visit.index
            drift, early_drift = (result.metrics[name] for name in ("adjoint_drift", "adjoint_early_drift"))
            assert bool(early_drift.isnan()) == (index >= 2) != bool(drift.isnan())
            if index < 2:
                base = hand.velocity(hand.rollout.states[index], index, "reference")
                torch.testing.assert_close(step.target("main"), base, rtol=1e-3, atol=1e-4)
        assert sum(result.share for result in results) == pytest.approx(
            sum(abs(hand.by(k)) * STEPS for k in range(0 if early else 2, STEPS)) / (STEPS if early else 3)
        )
