"""Targets of adjoint matching on tiny pipelines, against autograd through loops written by hand."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from flowhooks.adapters.frozen import FrozenAdapter
from flowhooks.errors import CheckpointError
from flowhooks.hooks.adjoint_target.maths import optimal_control
from tests.families import learnt
from tests.hooks.adjoint_reference import regularizer_cost
from tests.hooks.adjoint_runs import ROLLOUT, STEPS, ByHand, moved, run_through, target
from tests.hooks.test_on_policy import document, teachers, watched
from tests.sampling.test_rollout import GUIDED


def assert_targets(steps, hand, costates, powers):
    for step in steps:
        index = step.views["main"].state.visit.index
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
    with flowhooks.attach(model, document(rollout, target()), allow_imports=True) as session:
        moved(session)
        steps = run_through(session)
        assert [step.views["main"].state.visit.index for step in steps] == [2, 3, 4]
        hand = ByHand(session, steps)
        assert_targets(steps, hand, hand.lean(), {2: 1.0})
        policy = hand.velocity(hand.rollout.states[2], 2, "policy")
        torch.testing.assert_close(steps[0].predict("main"), policy, rtol=1e-3, atol=1e-4)
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
@pytest.mark.parametrize("powers", [{"2": 1.0}, {"2": 1.0, "4": 0.3}], ids=["square", "mixed"])
def test_full_targets(name, powers):
    model = learnt(name)
    with flowhooks.attach(
        model, document(ROLLOUT, target(adjoint="full", regularizer=powers)), allow_imports=True
    ) as session:
        moved(session)
        steps = run_through(session)
        hand, powers = ByHand(session, steps), {float(p): weight for p, weight in powers.items()}
        assert_targets(steps, hand, hand.full(powers), powers)


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_lookahead_targets(name):
    model = learnt(name)
    with flowhooks.attach(model, document(ROLLOUT, target(adjoint="lookahead")), allow_imports=True) as session:
        moved(session)
        steps = run_through(session)
        hand = ByHand(session, steps)
        assert_targets(steps, hand, hand.lookahead(), {2: 1.0})


@pytest.mark.parametrize("early", [0, 2])
def test_states_before_the_end_are_held_at_the_base(early):
    model = learnt("sd3")
    with flowhooks.attach(model, document({**ROLLOUT, "early_visits": early}, target()), allow_imports=True) as session:
        moved(session)
        with watched(session) as steps:
            results = list(session.steps(None))
        assert len(steps) == 3 + early
        hand = ByHand(session, steps)
        for step, result in zip(steps, results, strict=True):
            index = step.views["main"].state.visit.index
            drift, early_drift = (result.metrics[name] for name in ("adjoint_drift", "adjoint_early_drift"))
            assert bool(early_drift.isnan()) == (index >= 2) != bool(drift.isnan())
            if index < 2:
                base = hand.velocity(hand.rollout.states[index], index, "reference")
                torch.testing.assert_close(step.target("main"), base, rtol=1e-3, atol=1e-4)
        assert sum(result.share for result in results) == pytest.approx(
            sum(abs(hand.by(k)) * STEPS for k in range(0 if early else 2, STEPS)) / (STEPS if early else 3)
        )


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
@pytest.mark.parametrize("weight", [1e-6, 1.0], ids=["draft_k", "with_a_cost"])
def test_full_costates_give_the_gradient_of_the_last_steps(name, weight):
    """Back-propagation through the last 3 steps of the policy's rollout, the control's cost included, to one factor;
    where that cost is next to nothing this is DRaFT-K."""
    model = learnt(name)
    with flowhooks.attach(
        model, document(ROLLOUT, target(adjoint="full", regularizer={"2": weight})), allow_imports=True
    ) as session:
        moved(session)
        steps = run_through(session)
        parameters = session.parameters().values()
        found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        hand = ByHand(session, steps)
        gain, state = torch.zeros(2), hand.rollout.states[2]
        for k in range(2, STEPS):
            ours, theirs = (hand.velocity(state, k, role) for role in ("policy", "reference"))
            gain = gain + hand.by(k) * regularizer_cost(theirs - ours, {2: weight})
            state = state + hand.by(k) * ours
        used = [p for p in parameters if p.grad is not None]
        gradients = torch.autograd.grad((gain + hand.reward(state)).sum(), used)
        expected = torch.cat([gradient.flatten() for gradient in gradients])
    # A step's weight is STEPS |D| over 3 visits, and its error a mean over 2 samples.
    factor = -2 * STEPS / (3 * 2 * weight * state[0].numel())
    most = abs(factor) * float(expected.abs().max())
    torch.testing.assert_close(found, factor * expected, rtol=1e-2, atol=2e-3 * most)


def test_an_anchor_at_a_frozen_adapter_on_guided_rollouts(tmp_path):
    """The multi-task anchor of Flow-OPD beside the target: everybody is asked without guidance."""
    model = learnt("sd3")
    source = teachers(model, tmp_path)["b"]
    anchor = {"type": "anchor_regularizer", "role": "adapter:kind", "adapter": source, "weight": 0.5}
    guided = {**ROLLOUT, "pipeline_arguments": GUIDED["sd3"]}
    with flowhooks.attach(model, document(guided, target(), anchor), allow_imports=True) as session:
        moved(session)
        with watched(session) as steps:
            results = list(session.steps(None))
        hand = ByHand(session, steps)
        frozen = FrozenAdapter(model.transformer, source)
        for step, result in zip(steps, results, strict=True):
            index = step.views["main"].state.visit.index
            state = hand.rollout.states[index]
            with torch.no_grad(), session.adapter.disabled(), frozen.alone():
                velocity = hand.model.predict(state, torch.full((2,), hand.transitions[index].start), hand.condition)
                distance = (step.predict("main") - velocity).square().mean()
            assert float(result.metrics["anchor_adapter_kind_loss"]) == pytest.approx(0.5 * float(distance), rel=1e-3)
        assert_targets(steps, hand, hand.lean(), {2: 1.0})
        saved = session.state_dict()
    assert "adapter:kind" not in session.roles
    changed = {**anchor, "adapter": teachers(model, tmp_path)["a"]}
    with (
        flowhooks.attach(model, document(guided, target(), changed), allow_imports=True) as session,
        pytest.raises(CheckpointError, match="the anchor 'kind' .* is not the file that the checkpoint was"),
    ):
        session.load_state_dict(saved)
