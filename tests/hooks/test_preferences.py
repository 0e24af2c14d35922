"""Objectives of preferences against references of a few lines in float64, and what all of them share."""

from __future__ import annotations

import pytest
import torch

from flowhooks.hooks import IPO, AnchorRegularizer, MaskReducer, TimestepSchedule
from flowhooks.hooks.ipo.hook import ipo_loss
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


OBJECTIVES = {"ipo": (IPO, {"beta": 0.7}, ipo_by_hand)}


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


#: Objective -> its loss at the start, and what the gradient is there of `L_pol(w) - L_pol(l)`.
STARTS = {"ipo": (1 / (4 * 0.7**2), 1 / (2 * 0.7))}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_fresh_adapter_starts_as_the_formula_says(name):
    kind, options, _ = OBJECTIVES[name]
    model, batch = toy_model(0.0), toy_batch(masked=False)
    result = toy_session(model, kind(**options), TimestepSchedule(**ROUND), fresh=True).step(batch)
    assert result.metrics[f"{name}_margin"] == 0
    loss, slope = STARTS[name]
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
