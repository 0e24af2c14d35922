"""Training with the adapter off above a sigma: what is drawn, what is trained, and what its file says."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from flowhooks.adapters.fit import adapter_below
from flowhooks.config import resolve_run
from flowhooks.errors import AdapterError, ConfigError, ModelError
from tests.families import learnt
from tests.hooks.adjoint_runs import ROLLOUT, STEPS, ByHand, moved, run_through, target
from tests.hooks.test_on_policy import document

SIGMA = 0.7
GATED = {**ROLLOUT, "last_steps": None, "sigma_max": SIGMA}
GATE = {"type": "adapter_gate", "sigma": SIGMA}


@pytest.mark.parametrize("name", ["sd3", "flux2-klein", "wan"])
def test_the_rollout_is_the_bases_above_the_gate_and_the_policys_below(name):
    model = learnt(name)
    torch.manual_seed(0)
    with flowhooks.attach(model, document(GATED, target(), GATE), allow_imports=True) as session:
        moved(session)
        steps = run_through(session)
        drawn = steps[-1].views["main"].state.visit.rollout
        # Of a run, states are kept only where visits start; so all are drawn again.
        every = range(STEPS)
        rollout = session.source.player.draw(drawn.prompts, drawn.seeds, drawn.sampler, every, every)
        assert torch.equal(rollout.final, drawn.final)
        found = [step.predict("main") for step in steps]
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())
    early = [k for k in every if drawn.transitions[k].start > SIGMA]
    assert early and len(early) + len(steps) == STEPS
    torch.manual_seed(0)
    with flowhooks.attach(model, {"adapter": {"rank": 4}, "hooks": []}) as session:
        moved(session)
        hand = ByHand(session, steps)
        for k in every:
            with torch.no_grad():
                base, policy = (hand.velocity(rollout.states[k], k, role) for role in ("reference", "policy"))
            here, other = (base, policy) if k in early else (policy, base)
            torch.testing.assert_close(rollout.velocities[k].float(), here, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(rollout.velocities[k].float(), other, rtol=1e-3, atol=1e-4)
            if k not in early:
                torch.testing.assert_close(found[k - len(early)], here, rtol=1e-3, atol=1e-4)


def test_its_file_says_so(tmp_path):
    model = learnt("sd3")
    with flowhooks.attach(model, document(GATED, target(), GATE), allow_imports=True) as session:
        moved(session)
        file = session.adapter.save(tmp_path, {})
    assert adapter_below(file) == adapter_below(tmp_path) == SIGMA
    with flowhooks.attach(model, document(GATED, target()), allow_imports=True) as session:
        file = session.adapter.save(tmp_path / "plain", {})
    assert adapter_below(file) is None


@pytest.mark.parametrize("changes", [{"sigma_max": 0.8}, {"early_visits": 1}, {"sigma_max": None, "last_steps": 2}])
def test_visits_above_it_are_refused(changes):
    with (
        pytest.raises(ModelError, match="keeps the adapter off above sigma 0.7, so nothing is trained there"),
        flowhooks.attach(learnt("sd3"), document({**GATED, **changes}, target(), GATE), allow_imports=True),
    ):
        pass


def test_a_gate_of_the_method_is_the_sigma_it_is_truncated_at(tmp_path):
    block = {"prompts": ["one"], "rewards": target()["rewards"], "early": "gate"}
    source = tmp_path / "run.json"
    written = {**block, "truncate": {"sigma_max": SIGMA}}
    run = resolve_run({"data": None, "method": {"adjoint_matching": written}}, source, allow_imports=True)
    hooks = {hook.type: hook.options for hook in run.hooks}
    assert hooks["adapter_gate"] == {"sigma": SIGMA}
    assert (hooks["on_policy_rollout"]["sigma_max"], hooks["on_policy_rollout"]["early_visits"]) == (SIGMA, 0)
    for truncate in ({}, {"truncate": {"last_k": 3}}, {"truncate": None}):
        with pytest.raises(ConfigError, match=r"adjoint_matching\.early: 'gate' keeps the adapter off above"):
            resolve_run(
                {"data": None, "method": {"adjoint_matching": {**block, **truncate}}}, source, allow_imports=True
            )


def test_a_header_that_is_no_number(tmp_path):
    with flowhooks.attach(learnt("sd3"), {"adapter": {"rank": 2}, "hooks": []}) as session:
        file = session.adapter.save(tmp_path, {"flowhooks.adapter_below": "half"})
    with pytest.raises(AdapterError, match="'half' is no number"):
        adapter_below(file)
