"""Flow-DPO against an independent reference in float64, and its behaviour at the edges."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from flowhooks.errors import TrainingError
from flowhooks.hooks import AnchorRegularizer, FlowDPO, MaskReducer, TimestepSchedule, detectors
from flowhooks.hooks.detectors import drift, margin_by_sigma, warn
from flowhooks.hooks.flow_dpo import auto_beta_bounds
from flowhooks.hooks.flow_dpo.hook import AutoBeta, auto_beta_factor, dpo_loss, gradient_factor
from flowhooks.hooks.preference import reduce_error
from flowhooks.kernel.random import Draws
from flowhooks.kernel.view import Batch
from flowhooks.testing import NoCondition
from tests.hooks.toy import FLOW, toy_batch, toy_model, toy_session

Terms = partial(detectors.Terms, name="flow_dpo", adapts=True)
SIGMAS = [0.8, 0.5, 0.3]


def reference_loss(model, batch, noise, *, beta, norm, dilate=0, masked=True, anchor=0.0, sft=0.0):
    """Sample by sample, in plain words; shares nothing with the hooks but the model's parameters."""
    losses, anchors, ordinary = [], [], []
    for i in range(len(batch.clean)):
        mask = torch.ones(4, 6, dtype=torch.float64)
        if masked:
            mask = batch.mask[i, 0].clone()
            if dilate:
                grown = torch.zeros_like(mask)
                for y in range(4):
                    for x in range(6):
                        grown[y, x] = mask[
                            max(0, y - dilate) : y + dilate + 1, max(0, x - dilate) : x + dilate + 1
                        ].max()
                mask = grown
            if mask.max() == 0:
                continue
        err, pulls = {}, []
        for side, clean in (("w", batch.clean[i]), ("l", batch.rejected[i])):
            s = torch.tensor(SIGMAS[i]).double()
            noisy = (1 - s) * clean + s * noise[i]
            ref = FLOW.velocity(noisy, s)
            pol = ref + noisy @ model.weight + model.bias
            for who, pred in (("pol", pol), ("ref", ref)):
                total = (mask * (pred - (noise[i] - clean)) ** 2).sum()
                size = {"sum": 1, "mean": clean.numel(), "masked_mean": max(1.0, 2 * float(mask.sum()))}[norm]
                err[who, side] = total / size
            pulls.append(((pol - ref) ** 2).mean())
            if side == "w":
                ordinary.append(((pol - (noise[i] - clean)) ** 2).mean())
        margin = err["ref", "w"] - err["pol", "w"] + err["pol", "l"] - err["ref", "l"]
        losses.append(-torch.log(1 / (1 + torch.exp(-beta / 2 * margin))))
        anchors.append(sum(pulls) / 2)
    n = len(losses)
    return sum(losses) / n + anchor * sum(anchors) / n + sft * sum(ordinary) / n


@pytest.mark.parametrize("norm", ["sum", "mean", "masked_mean"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("anchor", "sft", "dilate"), [(0, 0, 0), (0.3, 0, 1), (0.3, 0.7, 0)])
def test_loss_and_gradients_equal_the_reference(norm, masked, anchor, sft, dilate):
    model, batch = toy_model(), toy_batch(masked=masked)
    hooks = [
        FlowDPO(beta=0.7, norm_type=norm, sft_loss_weight=sft),
        AnchorRegularizer(role="reference", weight=anchor),
        TimestepSchedule(flow_custom_timesteps=SIGMAS, flow_timesteps_mode="round-robin"),
    ]
    if masked:
        hooks.append(MaskReducer(mask_dilate=dilate))
    session = toy_session(model, *hooks)
    result = session.step(batch)
    result.loss.backward()
    mine = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    noise = Draws(seed=0, micro_step=0).normal_like(batch.clean, "noise")
    expected = reference_loss(
        model, batch, noise, beta=0.7, norm=norm, masked=masked, anchor=anchor, sft=sft, dilate=dilate if masked else 0
    )
    expected.backward()
    # The policy, the reference, and the self-test of an adapter that is not new.
    assert result.passes == 3
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=1e-12)
    for name, p in model.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-9, atol=1e-12)


def test_auto_beta_follows_its_formula():
    """beta = 2 ln((1 - g) / g) / bias-corrected EMA(|margin|); with one pair a batch, |margin| is the logged margin's
    size."""
    hook = FlowDPO(beta=3.0, norm_type="mean", auto_beta=True, auto_beta_target_gf=0.2, auto_beta_decay=0.9)
    session = toy_session(toy_model(), hook)
    average = 0.0
    for n in range(1, 5):
        metrics = session.step(toy_batch(size=1, masked=False, seed=n)).metrics
        average = 0.9 * average + 0.1 * abs(float(metrics["flow_dpo_margin"]))
        expected = 2 * math.log(0.8 / 0.2) / (average / (1 - 0.9**n))
        assert float(metrics["flow_dpo_beta"]) == pytest.approx(expected, rel=1e-12)


def test_auto_beta_keeps_the_configured_beta_until_a_margin_is_seen():
    beta = AutoBeta(beta=7.0, target=0.2, decay=0.99, low=None, high=None)
    for margin in (0.0, 1e-9):
        beta.update(torch.tensor(margin), torch.tensor(1.0))
        assert beta.value() == 7.0
    beta.update(torch.tensor(0.5), torch.tensor(1.0))
    assert float(beta.value()) == pytest.approx(2.7726 / 0.5, rel=1e-4)


@pytest.mark.parametrize(("norm", "elements"), [("mean", 1), ("masked_mean", 1), ("sum", 48)])
def test_auto_beta_keeps_within_bounds_in_units_of_the_reduction(norm, elements):
    """The least beta is a brake: a margin that runs away meets a sigmoid that saturates."""
    hook = FlowDPO(beta=3.0, norm_type=norm, auto_beta=True, auto_beta_decay=0.0)
    for margin, bound in ((1e5, 10.0 / elements), (1e-7, 1e6 / elements)):
        hook.reduce(None, SimpleNamespace(mask=None), torch.zeros(1, 2, 4, 6))
        hook.adapted.update(torch.tensor(margin), torch.tensor(0.0))
        assert float(hook.adapted.clamped()) == pytest.approx(bound, rel=1e-6)
    # What the user sets is the bound, and the configured beta is no value that auto-beta found.
    assert auto_beta_bounds({**hook.options(), "auto_beta_min": 2.0, "auto_beta_max": 9.0}, 48) == (2.0, 9.0)
    assert auto_beta_bounds({**hook.options(), "auto_beta_max": 1e-3}, 48) == (0.0, 1e-3)
    assert auto_beta_bounds({**hook.options(), "auto_beta_min": 1e7}, 48) == (1e7, math.inf)
    fresh = FlowDPO(beta=3.0, norm_type=norm, auto_beta=True)
    toy_session(toy_model(0.0), fresh, fresh=True).step(toy_batch(masked=False))
    assert float(fresh.adapted.clamped()) == 3.0


@pytest.mark.parametrize("target", [0.0, 0.5, 0.7, -1.0])
def test_auto_beta_refuses_a_target_outside_its_range(target):
    with pytest.raises(ValueError, match="between 0 and 0.5"):
        auto_beta_factor(target)


def test_a_clamp_that_binds_is_logged_and_warned_of():
    hook = FlowDPO(norm_type="mean", auto_beta=True, auto_beta_max=1.0)
    metrics = toy_session(toy_model(), hook).step(toy_batch(masked=False)).metrics
    assert metrics["flow_dpo_beta"] == 1.0
    assert metrics["flow_dpo_beta_clamped"] == 1
    assert any("auto_beta_max" in sentence for sentence in hook.warnings({k: float(v) for k, v in metrics.items()}))


def test_a_fresh_adapter_starts_at_margin_zero_and_ln_two():
    result = toy_session(toy_model(0.0), FlowDPO(), fresh=True).step(toy_batch(masked=False))
    assert result.metrics["flow_dpo_margin"] == 0
    assert float(result.loss) == pytest.approx(math.log(2), rel=1e-12)
    assert float(result.metrics["flow_dpo_gradient_factor"]) == 0.5


def test_the_self_test_stops_a_reference_that_is_not_the_base():
    with pytest.raises(TrainingError, match="the reference is not the base model"):
        toy_session(toy_model(0.1), FlowDPO(), fresh=True).step(toy_batch(masked=False))


def test_held_out_steps_leave_auto_beta_alone():
    hook = FlowDPO(norm_type="mean", auto_beta=True)
    session = toy_session(toy_model(), hook)
    session.step(toy_batch(masked=False))
    before = hook.state_dict()
    result = session.evaluate(toy_batch(masked=False, seed=9))
    assert hook.state_dict() == before
    assert not result.loss.requires_grad
    assert session.micro_step == 1


def test_an_empty_mask_leaves_its_pair_out():
    """The loss of a batch with an empty mask equals the loss of the batch without that pair."""
    model, batch = toy_model(), toy_batch(size=3)

    def hooks() -> list:
        return [
            FlowDPO(beta=0.7, norm_type="masked_mean"),
            MaskReducer(),
            TimestepSchedule(flow_custom_timesteps=SIGMAS, flow_timesteps_mode="round-robin"),
        ]

    whole = toy_session(model, *hooks()).step(batch)
    two = Batch(clean=batch.clean[:2], rejected=batch.rejected[:2], mask=batch.mask[:2], condition=NoCondition(2))
    torch.testing.assert_close(whole.loss, toy_session(model, *hooks()).step(two).loss)
    assert float(whole.metrics["mask_empty_pct"]) == pytest.approx(100 / 3)


def test_all_masks_empty_gives_zero_loss_and_zero_gradient():
    model, batch = toy_model(), toy_batch(size=2)
    batch.mask.zero_()
    result = toy_session(model, FlowDPO(norm_type="masked_mean"), MaskReducer()).step(batch)
    result.loss.backward()
    assert result.loss == 0
    compared = {name for name, value in result.metrics.items() if name.startswith("flow_dpo_") and value.isfinite()}
    assert compared <= {"flow_dpo_beta", "flow_dpo_drift_outside"}
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_reductions():
    error = torch.arange(8.0).reshape(1, 2, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]])
    assert reduce_error(error, "sum", None) == 28
    assert reduce_error(error, "mean", mask) == 3.5
    assert reduce_error(error * mask, "masked_mean", mask) == (0 + 4 + 0.5 * (2 + 6)) / 3
    assert reduce_error(error, "masked_mean", None) == 3.5
    assert reduce_error(error * 0.1 * mask, "masked_mean", 0.1 * mask).isfinite()


def test_beta_of_sum_and_mean_differ_by_the_element_count():
    """16 x 64 x 64 latents: beta_sum = 1 is beta_mean = 65,536."""
    error = torch.rand(2, 16, 64, 64, dtype=torch.float64)
    by_sum = dpo_loss(reduce_error(error, "sum", None) * 1e-4, 1.0)
    by_mean = dpo_loss(reduce_error(error, "mean", None) * 1e-4, 65536.0)
    torch.testing.assert_close(by_sum, by_mean)


def test_gradient_factor_is_the_derivative_of_the_loss():
    margin = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(dpo_loss(margin, 1.3).sum(), margin)
    torch.testing.assert_close(-slope / (1.3 / 2), gradient_factor(margin, 1.3).detach())


def test_the_mean_comes_after_the_logarithm():
    margins = torch.tensor([5.0, -5.0])
    assert float(dpo_loss(margins, 1.0).mean()) > float(dpo_loss(margins.mean(), 1.0)) + 0.3


def test_detectors():
    plain = Terms()
    (said,) = warn({"flow_dpo_win_adv": -0.1, "flow_dpo_margin": 0.2}, plain)
    assert said.startswith("flow_dpo: the margin, 0.2, is there only because the rejected side gets worse")
    assert "saturated" in warn({"flow_dpo_gradient_factor": 0.01}, plain)[0]
    assert "outside the mask" in warn({"flow_dpo_drift_inside": 0.1, "flow_dpo_drift_outside": 0.2}, plain)[0]
    assert warn({"flow_dpo_win_adv": 0.1, "flow_dpo_margin": 0.2, "flow_dpo_gradient_factor": 0.4}, plain) == []
    reference = torch.tensor([3.0, 4.0])
    assert drift(reference + 1, reference, torch.ones(2)) == pytest.approx(math.sqrt(2) / 5)
    buckets = margin_by_sigma(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 1.0]))
    assert list(buckets) == [f"margin_sigma_{a:.2f}_{a + 0.25:.2f}" for a in (0, 0.25, 0.5, 0.75)]
    values = list(buckets.values())
    assert values[0] == 2 and values[1].isnan() and values[3] == 5


def test_seed_metrics_are_all_there():
    metrics = toy_session(toy_model(), FlowDPO(), MaskReducer()).step(toy_batch()).metrics
    asked = (
        "loss beta margin win_adv lose_adv policy_win_err policy_lose_err ref_win_err ref_lose_err "
        "negative_margin_pct gradient_factor "
        "drift_inside drift_outside lose_share lose_only_pct implicit_accuracy"
    )
    assert {f"flow_dpo_{name}" for name in asked.split()} <= set(metrics)
    assert all(not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"beta": 0}, "`beta`"),
        ({"norm_type": "avg"}, "`norm_type`"),
        ({"auto_beta": True, "auto_beta_min": 2.0, "auto_beta_max": 1.0}, "`auto_beta_min`"),
        ({"auto_beta": True, "auto_beta_target_gf": 0.6}, "`auto_beta_target_gf`"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        FlowDPO(**options)


def test_detectors_are_silent_below_rounding():
    """At the second step a margin is 1e-6 of errors near 1, and the drift as small: nothing has happened yet."""
    errors = {"flow_dpo_ref_win_err": 1.0, "flow_dpo_ref_lose_err": 1.0}
    early = {"flow_dpo_win_adv": -1e-6, "flow_dpo_margin": 1e-6, **errors}
    assert warn(early, Terms()) == []
    assert warn({**early, "flow_dpo_win_adv": -1e-3, "flow_dpo_margin": 1e-3}, Terms()) != []
    assert warn({"flow_dpo_drift_inside": 1e-6, "flow_dpo_drift_outside": 2e-6}, Terms()) == []
    assert warn({"flow_dpo_drift_inside": 0.2, "flow_dpo_drift_outside": 0.21}, Terms()) == []
    assert warn({"flow_dpo_beta_clamped": 0.4}, Terms(auto_beta=True, high=9.0)) == []


SATURATED = {"gradient_factor": 0.01, "beta": 500.0}
WORSE = {"win_adv": -1.0, "margin": 1.0}


@pytest.mark.parametrize(
    ("terms", "metrics", "told", "untold"),
    [
        (Terms(), SATURATED, "lower `beta` below 500, or set `auto_beta`", "decay"),
        (Terms(auto_beta=True), SATURATED, "lower `auto_beta_decay`", "set `auto_beta`"),
        (Terms(auto_beta=True, low=500.0), SATURATED, "lower `auto_beta_min`, 500, at which beta stands", "set `auto"),
        (Terms(), WORSE, "add an anchor (`anchor_alpha`", "raise"),
        (Terms(), WORSE, "or set `sft_loss_weight`", "raise"),
        (
            Terms(anchor=0.05, sft_loss_weight=0.5),
            WORSE,
            "above 0.05, lower the learning rate, or raise `sft_loss_weight` above 0.5",
            "add an anchor",
        ),
        (Terms(anchor=0.05), {"drift_inside": 0.1, "drift_outside": 0.2}, "above 0.05", "add an anchor"),
        (
            Terms(auto_beta=True, low=1.0, high=9.0),
            {"beta_clamped": 0.9, "beta": 9.0},
            "`auto_beta_max` (9) holds beta away",
            "auto_beta_min",
        ),
    ],
)
def test_advice_is_in_the_terms_of_the_run(terms, metrics, told, untold):
    (said,) = warn({f"flow_dpo_{name}": value for name, value in metrics.items()}, terms)
    assert told in said and untold not in said


def test_a_small_gradient_factor_that_was_asked_for_is_no_fault():
    assert warn({"flow_dpo_gradient_factor": 0.03}, Terms(auto_beta=True, target=0.04)) == []
    assert warn({"flow_dpo_gradient_factor": 0.01}, Terms(auto_beta=True, target=0.04)) != []


def test_where_nothing_is_compared_margins_are_not_judged():
    """Black masks: no word of saturation, one that says what is wrong, after ten steps as in a run."""
    session = toy_session(toy_model(), FlowDPO(norm_type="masked_mean", auto_beta=True), MaskReducer())
    batch = toy_batch(size=2)
    batch.mask.zero_()
    for _ in range(10):
        said = session.warnings({name: float(value) for name, value in session.step(batch).metrics.items()})
    assert len(said) == 1 and said[0].startswith("mask_reducer: every mask of the batches so far is black")


def test_pairs_of_two_like_sides_are_told():
    session = toy_session(toy_model(), FlowDPO())
    batch = replace(toy_batch(masked=False), rejected=toy_batch(masked=False).clean)
    for _ in range(10):
        said = session.warnings({name: float(value) for name, value in session.step(batch).metrics.items()})
    assert len(said) == 1 and "both sides of the pairs are alike" in said[0]
