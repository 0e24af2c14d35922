"""What keeps a preference run from running away: a cap on the margin, a penalty for a worse winner, an end."""

from __future__ import annotations

import math

import pytest
import torch

import flowhooks
from flowhooks.hooks import IPO, KTO, FlowDPO, LinearDPO, MaPO, TimestepSchedule
from flowhooks.hooks.preference_spec import AUTO_STOP, DETECTORS
from flowhooks.hooks.watch import Watch
from tests.hooks.test_preferences import ROUND, sides
from tests.hooks.toy import toy_batch, toy_model, toy_session
from tests.laws.cases import shared_model
from tests.laws.test_composition import document

#: Objective -> its options here, and the pull on a pair at the start.
PULLS = {FlowDPO: ({"beta": 3.0, "norm_type": "mean"}, 3.0 / 4), IPO: ({"beta": 3.0}, 1 / 6), LinearDPO: ({}, 0.5)}
#: Of an objective that learns from labels too, what makes it learn from pairs.
PAIRED = {KTO: {"label": None}}


def stepped(hook, batch, scale=0.1):
    model = toy_model(scale)
    result = toy_session(model, hook, TimestepSchedule(**ROUND)).step(batch)
    return model, result, torch.autograd.grad(result.loss, list(model.parameters()))


@pytest.mark.parametrize("kind", PULLS)
def test_pairs_above_the_cap_have_no_gradient_and_the_others_have_theirs(kind):
    """The cap stands between the margins of the batch, which are those of each pair on its own."""
    options, _ = PULLS[kind]
    batch = toy_batch(masked=False)
    rows = sides(toy_model(), batch)
    margins = [float((row[2] - row[0]) + (row[1] - row[3])) for row in rows]
    cap = sum(sorted(margins)[-2:]) / 2
    # All margins are moved above 0, where a cap can be.
    assert max(margins) > cap > 0
    model, result, capped = stepped(kind(margin_cap=cap, **options), batch)
    assert float(result.metrics[f"{kind.type}_capped_pct"]) == pytest.approx(100 / 3)
    below = [i for i, margin in enumerate(margins) if margin < cap]
    alone = toy_session(toy_model(), kind(**options), TimestepSchedule(**ROUND))
    parameters = list(alone.model.parameters())
    step = alone._step(batch, 0, alone.processes, training=False)
    step.views = alone.assembly.chain("views", alone._chunks(step)[0].views, step)
    hook = alone.assembly.owner("objective")
    margin = step.score("main", "reference") - step.score("main")
    margin = margin + step.score("rejected") - step.score("rejected", "reference")
    each = hook.pair_loss(step, margin)
    expected = torch.autograd.grad(each[below].sum() / len(margins), parameters)
    torch.testing.assert_close(capped, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", PULLS)
def test_a_worse_winner_is_pulled_back_as_a_pair_is_pulled_at_the_start(kind):
    options, pull = PULLS[kind]
    batch = toy_batch(masked=False)
    model, result, found = stepped(kind(win_weight=2.0, **options), batch)
    _, plain, without = stepped(kind(**options), batch)
    rows = sides(model, batch)
    worse = sum((row[0] - row[2]).clamp(min=0) for row in rows) / len(rows)
    assert worse > 0, "some winner is worse"
    assert float(result.metrics[f"{kind.type}_win_penalty"]) == pytest.approx(2 * pull * float(worse), rel=1e-10)
    assert float(result.loss - plain.loss) == pytest.approx(2 * pull * float(worse), rel=1e-9)
    penalty = torch.autograd.grad(2 * pull * worse, list(model.parameters()))
    added = tuple(one - other for one, other in zip(found, without, strict=True))
    torch.testing.assert_close(added, penalty, rtol=1e-8, atol=1e-11)


def test_a_better_winner_costs_nothing():
    hook = FlowDPO(win_weight=5.0)
    result = toy_session(toy_model(0.0), hook, TimestepSchedule(**ROUND), fresh=True).step(toy_batch(masked=False))
    assert float(result.loss) == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize("kind", [*PULLS, KTO])
def test_the_first_step_is_the_same_with_win_weight(kind):
    """Policy and reference err alike there: there is nothing to pull back."""
    batch, found, options = toy_batch(masked=False), [], PAIRED.get(kind, {})
    for weight in (0.0, 5.0):
        model = toy_model(0.0)
        session = toy_session(model, kind(win_weight=weight, **options), TimestepSchedule(**ROUND), fresh=True)
        result = session.step(batch)
        assert float(result.metrics[f"{kind.type}_win_adv"]) == 0
        found.append(torch.autograd.grad(result.loss, list(model.parameters())))
    assert any(each.abs().max() > 0 for each in found[0])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_detector_must_stay_on_and_a_step_without_a_number_is_passed_over():
    watch = Watch("ipo", {"detector": "win_error", "limit": 1.5, "patience": 2})

    def at(ratio: float):
        return watch.alarm({"ipo_policy_win_err": 0.4 * ratio, "ipo_ref_win_err": 0.4})

    assert at(1.4) is None and not at(1.6).final and at(1.4) is None
    assert not at(1.6).final and not at(math.nan).final
    alarm = at(1.7)
    assert alarm.final
    assert alarm.reason == (
        "ipo: `win_error`, the error on the preferred side over that of the reference, is 1.7, above 1.5, at 2 logged "
        "steps in a row"
    )
    below = Watch("flow_dpo", {"detector": "saturated", "patience": 1})
    assert below.alarm({"flow_dpo_gradient_factor": 0.06}) is None
    assert below.alarm({"flow_dpo_gradient_factor": 0.04}).final


def test_with_masks_the_drift_is_that_inside_them():
    watch = Watch("ipo", {"detector": "drift", "patience": 1})
    assert watch.alarm({"ipo_drift_inside": 0.6, "ipo_drift_outside": 0.0}).final


@pytest.mark.parametrize("kind", [FlowDPO, IPO, LinearDPO])
@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_reads_what_its_objective_logs_or_is_refused(kind, detector):
    rule = {"detector": detector, "limit": None, "patience": 1}
    if detector not in kind.detectors:
        with pytest.raises(ValueError, match=rf"`stop_when.detector` `{kind.type}` logs no .*win_error"):
            kind(stop_when=rule)
        return
    hook = kind(stop_when=rule)
    metrics = toy_session(toy_model(), hook).step(toy_batch(masked=False)).metrics
    assert math.isfinite(hook._watch._value({name: float(value) for name, value in metrics.items()}))


@pytest.mark.parametrize("kind", [FlowDPO, IPO, LinearDPO, KTO])
def test_by_default_a_run_ends_where_the_winner_stays_worse_by_half(kind):
    hook = kind()
    assert hook.watches and hook._watch.count == 0

    def at(ratio: float):
        return hook.alarm({f"{kind.type}_policy_win_err": ratio, f"{kind.type}_ref_win_err": 1.0})

    assert at(1.49) is None
    assert [at(1.51).final for _ in range(AUTO_STOP["patience"])] == [False, False, True]
    assert not kind(stop_when=None).watches
    with pytest.raises(ValueError, match="stop_when"):
        kind(stop_when="never")


def test_by_default_a_whole_network_which_cannot_go_back_is_not_watched():
    run = document({"flow_dpo": {"norm_type": "mean", "reference": "ema"}})
    with flowhooks.attach(shared_model(), run | {"training": {"use_ema": True}}) as session:
        assert session.watched
    whole = run | {"adapter": None, "training": {"use_ema": True, "trainable": "transformer"}}
    with flowhooks.attach(shared_model(), whole) as session:
        assert session.adapter is None and not session.watched


def test_mapo_has_no_reference_to_be_guarded_by():
    assert not {"stop_when", "win_weight", "margin_cap"} & set(MaPO.schema["properties"])
