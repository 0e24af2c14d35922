"""Objectives of preferences against references of a few lines in float64, and what all of them share."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flowhooks.hooks import IPO, AnchorRegularizer, LinearDPO, MaPO, MaskReducer, TimestepSchedule
from flowhooks.hooks.ipo.hook import ipo_loss, tie_loss
from flowhooks.hooks.linear_dpo.hook import linear_pull
from flowhooks.hooks.mapo.hook import likelihood, mapo_loss
from flowhooks.kernel.random import Draws
from tests.hooks.test_flow_dpo import SIGMAS
from tests.hooks.toy import FLOW, toy_batch, toy_model, toy_session

ROUND = {"flow_custom_timesteps": SIGMAS, "flow_timesteps_mode": "round-robin"}


def sides(model, batch, norm="mean"):
    """(policy on w, policy on l, reference on w, reference on l) of each pair whose mask is not empty, and the distance
    and the ordinary error of each, sample by sample."""
    noise, rows = Draws(seed=0, micro_step=0).normal_like(batch.clean, "noise"), []
    for i, s in enumerate(torch.tensor(SIGMAS).double()):
        mask = torch.ones_like(batch.clean[i]) if batch.mask is None else batch.mask[i].expand_as(batch.clean[i])
        if not mask.any():
            continue
        errors, distance, plain = [], 0.0, None
        for clean in (batch.clean[i], batch.rejected[i]):
            noisy = (1 - s) * clean + s * noise[i]
            ref = FLOW.velocity(noisy, s)
            pol = ref + noisy @ model.weight + model.bias
            squares = [(v - (noise[i] - clean)) ** 2 for v in (pol, ref)]
            size = {"sum": 1, "mean": mask.numel(), "masked_mean": mask.sum().clamp(min=1)}[norm]
            errors.append([(mask * square).sum() / size for square in squares])
            distance = distance + ((pol - ref) ** 2).mean() / 2
            plain = squares[0].mean() if plain is None else plain
        (pol_w, ref_w), (pol_l, ref_l) = errors
        rows.append((pol_w, pol_l, ref_w, ref_l, distance, plain))
    return rows


def ipo_by_hand(pol_w, pol_l, ref_w, ref_l, beta=0.7):
    return (((ref_w - pol_w) + (pol_l - ref_l)) / 2 - 1 / (2 * beta)) ** 2


def linear_dpo_by_hand(pol_w, pol_l, ref_w, ref_l, beta=5.0, eta=0.1):
    pull = 0.5 - 0.2 * beta * float((ref_w - pol_w) + (pol_l - ref_l))
    return min(max(pull, eta), 1 - eta) * (pol_w - pol_l)


def mapo_by_hand(pol_w, pol_l, ref_w, ref_l, beta=7.0, margin_weight=0.4):
    phi_w, phi_l = (0.5 * each / (torch.exp(0.5 * each) - 1) for each in (pol_w, pol_l))
    return pol_w + margin_weight * torch.log(1 + torch.exp(-beta * (phi_w - phi_l)))


OBJECTIVES = {
    "ipo": (IPO, {"beta": 0.7}, ipo_by_hand),
    "linear_dpo": (LinearDPO, {"beta": 5.0, "eta": 0.1}, linear_dpo_by_hand),
    "mapo": (MaPO, {"beta": 7.0, "margin_weight": 0.4}, mapo_by_hand),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("masked", "norm"), [(True, "masked_mean"), (False, "mean")])
def test_loss_and_gradients_equal_the_reference(name, masked, norm):
    """With masks, the anchor and the ordinary loss beside it."""
    kind, options, by_hand = OBJECTIVES[name]
    model, batch = toy_model(), toy_batch(masked=masked)
    hooks = [
        kind(norm_type=norm, sft_loss_weight=0.7, **options),
        AnchorRegularizer(role="reference", weight=0.3),
        TimestepSchedule(**ROUND),
        *([MaskReducer()] if masked else []),
    ]
    loss = toy_session(model, *hooks).step(batch).loss
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters)
    rows = sides(model, batch, norm)
    each = [by_hand(*row[:4], **options) + 0.3 * row[4] + 0.7 * row[5] for row in rows]
    expected = sum(each) / len(each)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters), rtol=1e-9, atol=1e-12)


#: Objective -> its loss at the start, where that is a number, and the factor of the gradient of `L_pol(w) - L_pol(l)`.
#: That of Linear-DPO is `2 / beta` times the `beta / 4` of Flow-DPO.
STARTS = {"ipo": (1 / (4 * 0.7**2), 1 / (2 * 0.7)), "linear_dpo": (None, 0.5)}


@pytest.mark.parametrize("name", STARTS)
def test_a_fresh_adapter_starts_as_the_formula_says(name):
    kind, options, _ = OBJECTIVES[name]
    model, batch = toy_model(0.0), toy_batch(masked=False)
    result = toy_session(model, kind(**options), TimestepSchedule(**ROUND), fresh=True).step(batch)
    assert result.metrics[f"{name}_margin"] == 0
    loss, slope = STARTS[name]
    if loss is not None:
        assert float(result.metrics[f"{name}_loss"]) == pytest.approx(loss, rel=1e-12)
    parameters = list(model.parameters())
    rows = sides(model, batch)
    pull = torch.autograd.grad(sum(row[0] - row[1] for row in rows) / len(rows), parameters)
    found = torch.autograd.grad(result.loss, parameters)
    torch.testing.assert_close(found, tuple(slope * each for each in pull), rtol=1e-9, atol=1e-12)


def test_ipo_rests_at_its_margin():
    margin = torch.tensor([1 / 3.0], dtype=torch.float64, requires_grad=True)
    loss = ipo_loss(margin, 3.0)
    loss.sum().backward()
    assert loss == 0 and margin.grad == 0


def test_linear_dpo_never_stops_pushing_above_its_margin():
    pull = linear_pull(torch.tensor([0.0, 0.3, 9.0, -9.0], dtype=torch.float64), 5.0, 0.01)
    torch.testing.assert_close(pull, torch.tensor([0.5, 0.2, 0.01, 0.99], dtype=torch.float64))


def test_mapo_on_equal_sides_is_the_ordinary_loss_and_a_constant():
    error = torch.tensor([0.3, 2.0], dtype=torch.float64)
    torch.testing.assert_close(mapo_loss(error, error, 1000.0, 0.1), error + 0.1 * math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_likelihood_is_whole_where_there_is_no_error(dtype):
    error = torch.tensor([0.0, 1e-12, 1.0, 1e4], dtype=dtype, requires_grad=True)
    found = likelihood(error)
    (slope,) = torch.autograd.grad(found.sum(), error)
    expected = torch.tensor([1.0, 1.0, 0.5 / math.expm1(0.5), 0.0], dtype=dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert bool(slope.isfinite().all()) and bool((slope <= 0).all())


def test_mapo_needs_no_reference_and_trains_a_whole_network():
    declared = MaPO.declaration({"beta": 1000.0})
    assert not any(need.startswith("role:") for need in declared["needs"])
    result = toy_session(toy_model(), MaPO()).step(toy_batch(masked=False))
    assert result.passes == 1 and not any("ref_" in name for name in result.metrics)


@pytest.mark.parametrize("masked", [False, True])
def test_ipo_brings_a_tie_to_a_margin_of_0_and_counts_it_for_no_side(masked):
    """A tie is half a vote for either side: the paper's loss of one vote, averaged, has the gradient of ours."""
    margin, beta = torch.linspace(-3, 3, 7, dtype=torch.float64).requires_grad_(), 0.7
    votes = (ipo_loss(margin, beta) + ipo_loss(-margin, beta)) / 2
    torch.testing.assert_close(votes - 1 / (4 * beta**2), tie_loss(margin))
    model, batch = toy_model(), toy_batch(masked=masked)
    shares = [0.5 if i == 0 else 1.0 for i in range(len(batch.clean))]
    batch = replace(batch, records=tuple({"preference": share} for share in shares))

    def stepped(batch):
        hook = IPO(beta=beta, norm_type="mean", sft_loss_weight=0.3, win_weight=0.5, margin_cap=1e-6)
        return toy_session(model, TimestepSchedule(**ROUND), hook, *([MaskReducer()] if masked else [])).step(batch)

    result = stepped(batch)
    rows = sides(model, batch)
    margins = [(ref_w - pol_w) + (pol_l - ref_l) for pol_w, pol_l, ref_w, ref_l, *_ in rows]
    tied = (margins[0] / 2) ** 2
    decided = [torch.clamp(each, max=1e-6) / 2 - 1 / (2 * beta) for each in margins[1:]]
    plain = sum(row[-1] for row in rows[1:]) / len(decided)
    worse = sum(max(0.0, float(row[0] - row[2])) for row in rows[1:]) / len(decided)
    expected = (tied + sum(each**2 for each in decided)) / len(rows) + 0.3 * plain + 0.5 * worse / (2 * beta)
    torch.testing.assert_close(result.loss, expected)
    assert float(result.metrics["ipo_margin"]) == pytest.approx(float(sum(margins[1:]) / len(decided)))
    alone = stepped(replace(batch, records=({"preference": 0.5},) * len(batch.clean)))
    assert math.isnan(alone.metrics["ipo_implicit_accuracy"]) and math.isfinite(alone.loss)
