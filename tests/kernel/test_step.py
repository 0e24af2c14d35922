"""The engine on the analytic flow: memoised passes, global means, penalties in the total, no sync unless logged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowhooks.distributed import Processes
from flowhooks.hooks import AnchorRegularizer, FlowDPO, MaskReducer
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.random import Draws
from flowhooks.kernel.view import Batch, Path, Sigma, View
from flowhooks.testing import NoCondition
from tests.hooks.toy import toy_batch, toy_model, toy_session


class Extra(Hook):
    """A second objective's worth of loss."""

    def penalty(self, step):
        return {"extra": step.views["main"].clean.square().mean() * 0 + 2.5}


def test_view_is_the_straight_path():
    clean, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    time = Sigma(level=torch.tensor([0.0, 1.0]))
    view = View(name="main", state=Path(clean=clean, noise=noise), time=time, condition=NoCondition(2))
    assert torch.equal(view.noisy[0], clean[0]) and torch.equal(view.noisy[1], noise[1])
    assert torch.equal(view.velocity, noise - clean)


def test_a_view_without_its_parts_says_so():
    view = View.of(Batch(clean=torch.ones(1, 2), condition=NoCondition(1)))
    with pytest.raises(ValueError, match="no clean latents"):
        view.velocity  # noqa: B018
    half = replace(view, state=Path(clean=torch.ones(1, 2), noise=torch.ones(1, 2)))
    with pytest.raises(ValueError, match="no sigma yet"):
        half.noisy  # noqa: B018


def test_a_batch_that_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="must match"):
        Batch(clean=torch.ones(2, 3), rejected=torch.ones(2, 4), condition=NoCondition(2))
    with pytest.raises(ValueError, match="holds 3 samples"):
        Batch(clean=torch.ones(2, 3), condition=NoCondition(3))


@pytest.mark.parametrize("batch_views", [True, False])
def test_forwards_are_the_distinct_pairs(batch_views):
    model, calls = toy_model(), []
    predict = model.predict
    model.predict = lambda noisy, sigma, condition: calls.append(len(noisy)) or predict(noisy, sigma, condition)
    hooks = [FlowDPO(), AnchorRegularizer(role="reference", weight=0.1), MaskReducer()]
    session = toy_session(model, *hooks, batch_views=batch_views)
    session.step(toy_batch(3))
    calls.clear()
    result = session.step(toy_batch(3))
    assert calls == ([6, 6] if batch_views else [3, 3, 3, 3])
    assert result.passes == len(calls)


def test_batched_and_single_views_agree():
    losses = [
        toy_session(toy_model(), FlowDPO(), batch_views=b).step(toy_batch(masked=False)).loss for b in (True, False)
    ]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


def test_every_penalty_is_in_the_total():
    plain = toy_session(toy_model(), FlowDPO()).step(toy_batch(masked=False))
    more = toy_session(toy_model(), FlowDPO(), Extra()).step(toy_batch(masked=False))
    torch.testing.assert_close(more.loss, plain.loss + 2.5)
    assert more.metrics["extra"] == 2.5


def test_two_penalties_of_one_name_are_an_error():
    with pytest.raises(ValueError, match="two hooks give the penalty 'extra'"):
        toy_session(toy_model(), Extra(), Extra()).step(toy_batch(masked=False))


def test_a_pass_nobody_declared_is_an_error():
    class Undeclared(Hook):
        def penalty(self, step):
            return {"x": step.predict("main", "reference").mean()}

    with pytest.raises(KeyError, match="declared a pass"):
        toy_session(toy_model(), Undeclared()).step(toy_batch(masked=False))


def test_weighted_mean_is_the_global_one():
    """Two processes of unequal counts: the average of the local shares is the mean over all counted samples."""
    values = [torch.tensor([1.0, 2.0]), torch.tensor([4.0, float("nan")])]
    weights = [torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])]
    shares = []
    for rank in (0, 1):
        session = toy_session(
            toy_model(), Extra(), processes=Processes(rank=rank, world_size=2, all_reduce=lambda t: torch.tensor(3.0))
        )
        got = {}
        session.assembly.metrics = lambda step, got=got, rank=rank: {"m": step.mean(values[rank], weights[rank])} | got
        shares.append(session.step(toy_batch(2, masked=False)).metrics["m"])
    assert float(sum(shares) / 2) == pytest.approx((1 + 2 + 4) / 3)


def test_noise_depends_on_nothing_but_seed_step_and_position():
    like = torch.empty(4, 3)
    whole = Draws(seed=1, micro_step=5).normal_like(like, "noise")
    parts = [Draws(seed=1, micro_step=5, rank=r, world_size=2).normal_like(like[:2], "noise") for r in (0, 1)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, Draws(seed=1, micro_step=6).normal_like(like, "noise"))
    assert not torch.equal(whole, Draws(seed=2, micro_step=5).normal_like(like, "noise"))
    assert not torch.equal(whole, Draws(seed=1, micro_step=5).normal_like(like, "other"))
    many = Draws(seed=0, micro_step=0).normal_like(torch.empty(64, 1000), "noise")
    assert abs(float(many.mean())) < 0.02 and abs(float(many.std()) - 1) < 0.02


def test_drawing_leaves_torch_alone():
    before = torch.get_rng_state()
    toy_session(toy_model(), FlowDPO()).step(toy_batch(masked=False))
    assert torch.equal(before, torch.get_rng_state())


def test_metrics_come_only_when_logged():
    session = toy_session(toy_model(), FlowDPO())
    assert session.step(toy_batch(masked=False), log=False).metrics == {}
    assert "flow_dpo_margin" in session.step(toy_batch(masked=False), log=True).metrics


def test_session_state_round_trips():
    session = toy_session(toy_model(), FlowDPO(auto_beta=True, norm_type="mean"))
    for _ in range(3):
        session.step(toy_batch(masked=False))
    other = toy_session(toy_model(), FlowDPO(auto_beta=True, norm_type="mean"))
    other.load_state_dict(session.state_dict())
    a, b = (s.step(toy_batch(masked=False)) for s in (session, other))
    assert torch.equal(a.loss, b.loss) and other.micro_step == 4


def test_state_of_other_hooks_is_refused():
    from flowhooks.errors import CheckpointError

    session = toy_session(toy_model(), FlowDPO())
    with pytest.raises(CheckpointError, match="this run has"):
        session.load_state_dict(toy_session(toy_model(), Extra()).state_dict())
