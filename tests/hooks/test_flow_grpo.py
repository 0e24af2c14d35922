"""Flow-GRPO: advantages and gradients in plain arithmetic, rewards of tiny pictures."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from flowhooks.errors import FlowhooksError, ModelError, RewardError
from flowhooks.hooks.flow_grpo.hook import group_advantages, policy_gradient_loss
from flowhooks.rewards import PictureReward
from tests.families import learnt
from tests.hooks.test_on_policy import ROLLOUT, document, watched

GROUPED = {**ROLLOUT, "group_size": 3, "visits": 2}


class Mean(PictureReward):
    """How bright a picture is."""

    def __init__(self, *, name: str = "mean", nan: bool = False):
        super().__init__(name=name)
        self.nan, self.calls = nan, 0

    def score(self, pictures, prompts, records):
        self.calls += 1
        return pictures.flatten(1).mean(1) * (float("nan") if self.nan else 1)


def grpo(**options) -> dict:
    return {"type": "flow_grpo", "rewards": [{"type": "tests.hooks.test_flow_grpo:Mean", **options}]}


def test_advantages_are_within_groups():
    rewards = torch.tensor([1.0, 2.0, 3.0, 10.0, 10.0, 10.0])
    found = group_advantages(rewards, 3, 5.0)
    spread = torch.tensor([1.0, 2.0, 3.0]).std(correction=0)
    assert torch.allclose(found[:3], torch.tensor([-1.0, 0.0, 1.0]) / (spread + 1e-4))
    assert torch.equal(found[3:], torch.zeros(3)), "no spread, nothing to learn"
    assert group_advantages(torch.tensor([0.0] * 9 + [1.0]), 10, 2.0).max() == 2


def test_before_the_first_update_the_ratio_is_one():
    log_prob, advantage = torch.randn(4, requires_grad=True), torch.randn(4)
    loss = policy_gradient_loss(log_prob, log_prob.detach(), advantage)
    assert torch.equal(loss.detach(), -advantage)
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    assert torch.equal(gradient, -advantage)


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_a_step_pushes_what_was_drawn_by_its_advantage(name):
    """Gradient of a chunk against one made by hand from the visit and the rewards of the decoded pictures."""
    model = learnt(name)
    with flowhooks.attach(model, document(GROUPED, grpo(), batch_size=1), allow_imports=True) as session:
        with watched(session) as steps:
            result = next(session.steps(None))
            result.loss.backward()
        gradients = {key: p.grad.clone() for key, p in session.parameters().items() if p.grad is not None}
        step, visit = steps[0], steps[0].views["main"].state.visit
        pixels = model.decode(visit.rollout.final) / 2 + 0.5
        rewards = pixels.clamp(0, 1).flatten(1).mean(1)
        advantage = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
        for p in session.parameters().values():
            p.grad = None
        transition = visit.transition
        away = visit.after - transition.mean(visit.state, visit.velocity("policy"))
        log_prob = -away.square().flatten(1).mean(1) / (2 * transition.deviation**2)
        (result.share * -(advantage * log_prob).mean()).backward()
        for key, gradient in gradients.items():
            torch.testing.assert_close(session.parameters()[key].grad, gradient, rtol=2e-3, atol=1e-6)
        assert float(result.metrics["flow_grpo_reward"]) == pytest.approx(float(rewards.mean()), rel=1e-4)
        assert float(result.metrics["flow_grpo_reward_mean"]) == pytest.approx(float(rewards.mean()), rel=1e-4)
        assert step.batch.prompts == (step.batch.prompts[0],) * 3


def test_a_reward_is_asked_once_a_rollout():
    model = learnt("sd3")
    with flowhooks.attach(model, document(GROUPED, grpo(), batch_size=2), allow_imports=True) as session:
        (hook,) = (h for h in session.assembly.hooks if h.type == "flow_grpo")
        results = list(session.steps(None))
        assert len(results) == 2
        assert hook._judges.rewards[0].calls == 1


def test_rewards_rise():
    model = learnt("sd3")
    torch.manual_seed(0)
    run = document({**GROUPED, "group_size": 8, "visits": 3}, grpo(), batch_size=1)
    with flowhooks.attach(model, run, allow_imports=True) as session:
        optimizer = torch.optim.AdamW(session.parameters().values(), lr=2e-3)
        found = []
        for _ in range(40):
            for result in session.steps(None):
                result.loss.backward()
            found.append(float(result.metrics["flow_grpo_reward"]))
            optimizer.step()
            optimizer.zero_grad()
    assert sum(found[-10:]) > sum(found[:10])


@pytest.mark.parametrize("changes", [{"group_size": 1}, {"sampler": "ode"}], ids=["alone", "without chance"])
def test_nothing_to_compare_is_refused(changes):
    with (
        pytest.raises(ModelError, match="compares images of one prompt along stochastic steps"),
        flowhooks.attach(learnt("sd3"), document({**GROUPED, **changes}, grpo()), allow_imports=True),
    ):
        pass


def test_a_reward_that_gives_nan_is_named():
    with (
        flowhooks.attach(learnt("sd3"), document(GROUPED, grpo(nan=True)), allow_imports=True) as session,
        pytest.raises(RewardError, match="'mean'.*one|one.*'mean'"),
    ):
        list(session.steps(None))


def test_a_pipeline_without_a_vae_is_refused():
    model = learnt("sd3")
    model.pipe.vae = None
    with (
        pytest.raises(FlowhooksError, match="no `vae`"),
        flowhooks.attach(model, document(GROUPED, grpo()), allow_imports=True),
    ):
        pass
