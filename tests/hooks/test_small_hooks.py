"""Masks, anchors, pairs and times, each against plain arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowhooks.distributed import Processes
from flowhooks.hooks import AnchorRegularizer, FlowDPO, MaskReducer, PairedViews, TimestepSchedule
from flowhooks.hooks.mask_reducer.hook import counted, dilate
from flowhooks.hooks.timestep_schedule import parse_timesteps
from flowhooks.hooks.timestep_schedule.hook import shift_sigma
from flowhooks.kernel.hook import Hook
from tests.hooks.toy import toy_batch, toy_model, toy_session


class Sigmas(Hook):
    """Reports the sigmas and noise a step drew."""

    def metrics(self, step):
        view = step.views["main"]
        return {"sigmas": view.sigma, "noise": view.noise}


def drawn(steps: int = 1, size: int = 4, rank: int = 0, world_size: int = 1, **options):
    session = toy_session(
        toy_model(),
        TimestepSchedule(**options),
        Sigmas(),
        processes=Processes(rank=rank, world_size=world_size),
    )
    return [session.step(toy_batch(size)).metrics for _ in range(steps)]


def test_dilation_grows_by_whole_cells():
    mask = torch.zeros(1, 1, 7, 7)
    mask[0, 0, 3, 3] = 0.5
    grown = dilate(mask, 2)
    assert grown[0, 0, 1:6, 1:6].eq(0.5).all() and grown.sum() == 0.5 * 25
    assert dilate(mask, 0) is mask


def test_counted_tells_empty_masks():
    assert counted(torch.tensor([[[[0.0, 0.1]]], [[[0.0, 0.0]]]])).tolist() == [1, 0]


def test_mask_weighs_the_error_and_leaves_the_anchor_alone():
    model, batch = toy_model(), toy_batch(size=2)
    batch.mask[:] = 1
    anchored = AnchorRegularizer(role="reference", weight=1.0)
    full = toy_session(model, FlowDPO(norm_type="sum"), anchored, MaskReducer()).step(batch)
    batch.mask[:] = 0.25
    quarter = toy_session(model, FlowDPO(norm_type="sum"), anchored, MaskReducer()).step(batch)
    torch.testing.assert_close(quarter.metrics["flow_dpo_margin"], 0.25 * full.metrics["flow_dpo_margin"])
    assert torch.equal(quarter.metrics["anchor_reference_loss"], full.metrics["anchor_reference_loss"])


def test_anchor_is_half_the_two_distances():
    model, batch = toy_model(), toy_batch(size=2, masked=False)
    session = toy_session(model, FlowDPO(), AnchorRegularizer(role="reference", weight=0.5))
    result = session.step(batch)
    views = {}
    session.assembly.metrics = lambda step: views.update(step.views) or {}
    session.micro_step = 0
    session.step(batch)
    distance = [(v.noisy @ model.weight + model.bias).square().mean() for v in views.values()]
    torch.testing.assert_close(result.metrics["anchor_reference_loss"], 0.5 * (distance[0] + distance[1]) / 2)


def test_rejected_view_shares_noise_sigma_and_prompt():
    session = toy_session(toy_model(), PairedViews(), TimestepSchedule(), FlowDPO())
    seen = {}
    session.assembly.metrics = lambda step: seen.update(step.views) or {}
    batch = toy_batch(masked=False)
    session.step(batch)
    main, rejected = seen["main"], seen["rejected"]
    assert rejected.noise is main.noise and rejected.sigma is main.sigma and rejected.condition is main.condition
    assert torch.equal(rejected.clean, batch.rejected)
    apart = (1 - main.sigma.reshape(-1, 1, 1, 1)) * (batch.clean - batch.rejected)
    torch.testing.assert_close(main.noisy - rejected.noisy, apart)


def test_a_batch_without_its_rejected_side_is_named():
    session = toy_session(toy_model(), FlowDPO())
    with pytest.raises(ValueError, match="no `rejected` latents"):
        session.step(replace(toy_batch(masked=False), rejected=None))


@pytest.mark.parametrize(
    "given", ["801,694,548,338", [801, 694, 548, 338], [0.801, 0.694, 0.548, 0.338], "0.801, 694, 0.548,338"]
)
def test_timesteps_are_read_in_every_form(given):
    assert parse_timesteps(given) == pytest.approx([0.801, 0.694, 0.548, 0.338])


@pytest.mark.parametrize(
    ("given", "named"), [("801,x", "'x'"), ([0.0], "0.0"), ([1200], "1200"), ("", "''"), ([], "empty"), ([-1], "-1")]
)
def test_timesteps_that_cannot_be_read_are_an_error(given, named):
    with pytest.raises(ValueError, match=named):
        parse_timesteps(given)


def test_round_robin_walks_the_list_and_offsets_the_ranks():
    walk = {"flow_custom_timesteps": "900,700,500,300,100", "flow_timesteps_mode": "round-robin"}
    one = [m["sigmas"].tolist() for m in drawn(3, size=4, **walk)]
    assert one[0] == pytest.approx([0.9, 0.7, 0.5, 0.3]) and one[1] == pytest.approx([0.7, 0.5, 0.3, 0.1])
    halves = [drawn(3, size=2, rank=r, world_size=2, **walk) for r in (0, 1)]
    for step in range(3):
        assert [s for half in halves for s in half[step]["sigmas"].tolist()] == one[step]


def test_fixed_list_draws_only_from_the_list():
    sigmas = torch.cat([m["sigmas"] for m in drawn(50, flow_custom_timesteps=[0.8, 0.4])])
    assert sorted(set(sigmas.tolist())) == pytest.approx([0.4, 0.8])
    assert 60 < int((sigmas > 0.6).sum()) < 140


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode"])
def test_densities_stay_in_range_and_move_from_step_to_step(scheme):
    steps = [m["sigmas"] for m in drawn(20, weighting_scheme=scheme)]
    sigmas = torch.cat(steps)
    assert (sigmas >= 0).all() and (sigmas <= 1).all()
    assert not torch.equal(steps[0], steps[1])


def test_a_positive_logit_mean_leans_to_noise_and_so_does_a_shift():
    def level(**options):
        return float(torch.cat([m["sigmas"] for m in drawn(40, **options)]).mean())

    assert level(logit_mean=1.0, shift=1.0) > level(logit_mean=0.0, shift=1.0) + 0.1
    assert level(shift=3.0) > level(shift=1.0) + 0.1
    assert shift_sigma(torch.tensor(0.5), 3.0) == 0.75


def test_processes_together_draw_what_one_draws_alone():
    alone = drawn(2, size=4)
    halves = [drawn(2, size=2, rank=r, world_size=2) for r in (0, 1)]
    for step in range(2):
        for name in ("sigmas", "noise"):
            assert torch.equal(torch.cat([half[step][name] for half in halves]), alone[step][name])


def test_a_mode_without_its_list_is_an_error():
    with pytest.raises(ValueError, match="'round-robin' needs a list of times"):
        TimestepSchedule(flow_timesteps_mode="round-robin")
    with pytest.raises(ValueError, match="'random' would leave"):
        TimestepSchedule(flow_timesteps_mode="random", flow_custom_timesteps=[0.5])
