"""KTO on labels and on pairs against its formula in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowhooks.checks.planning import plan_run
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError, TrainingError
from flowhooks.hooks import KTO, AnchorRegularizer, MaskReducer, TimestepSchedule
from flowhooks.hooks.kto import as_liked
from flowhooks.hooks.kto.hook import kto_loss
from tests.hooks.test_preferences import ROUND, sides
from tests.hooks.toy import EVERYTHING, toy_batch, toy_model, toy_session

LABELS = ["up", 0, "True"]


@pytest.fixture(autouse=True)
def _labelled(monkeypatch):
    monkeypatch.setattr("tests.hooks.toy.EVERYTHING", EVERYTHING | {"data:label"})


def labelled(masked: bool, labels=LABELS):
    return replace(toy_batch(masked=masked), records=tuple({"label": label} for label in labels))


def by_hand(samples, beta, weights):
    """The mean loss of samples, (policy's error, reference's error, liked)."""
    advantages = [ref - pol for pol, ref, _ in samples]
    point = max(0.0, sum(float(each.detach()) for each in advantages) / len(advantages))
    losses = []
    for advantage, (*_, liked) in zip(advantages, samples, strict=True):
        sign = 1 if liked else -1
        losses.append(weights[not liked] * (1 - 1 / (1 + torch.exp(-sign * beta * (advantage - point)))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("label", ["label", None])
def test_loss_and_gradients_equal_the_formula(masked, label):
    """On labelled images, and on pairs whose sides are labelled by their place; with the anchor, the ordinary loss on
    what was liked, and the guard of it."""
    model, batch = toy_model(), labelled(masked)
    hook = KTO(label=label, beta=5.0, disliked_weight=0.5, sft_loss_weight=0.7, win_weight=2.0, norm_type="masked_mean")
    hooks = [hook, TimestepSchedule(**ROUND), *([MaskReducer()] if masked else [])]
    if label is None:
        hooks.append(AnchorRegularizer(role="reference", weight=0.3))
    result = toy_session(model, *hooks).step(batch)
    parameters = list(model.parameters())
    found = torch.autograd.grad(result.loss, parameters)

    rows = sides(model, batch, "masked_mean")
    votes = [as_liked(value) for value in LABELS][: len(rows)]
    winners = [(row[0], row[2], label is None or liked) for row, liked in zip(rows, votes, strict=True)]
    samples = winners + ([(row[1], row[3], False) for row in rows] if label is None else [])
    plain = [row[5] for row, (*_, liked) in zip(rows, winners, strict=True) if liked]
    hinge = sum((pol - ref).clamp(min=0) for pol, ref, liked in samples if liked) / len(samples)
    expected = by_hand(samples, 5.0, (1.0, 0.5)) + 0.7 * sum(plain) / len(plain) + 2.0 * 5.0 / 4 * hinge
    if label is None:
        expected = expected + 0.3 * sum(row[4] for row in rows) / len(rows)
    torch.testing.assert_close(result.loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters), rtol=1e-9, atol=1e-12)
    # One forward for each role, and that of the self-test.
    assert result.passes == 3


def test_it_starts_and_pulls_as_its_formula_says():
    """Half of each weight at the start, and there ``y w beta / 4`` of the gradient of the error."""
    error = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    loss = kto_loss(error.detach() - error, torch.tensor([True, False]), torch.zeros(()), 1000.0)
    loss.sum().backward()
    assert loss.tolist() == [0.5, 0.5] and error.grad.tolist() == [250.0, -250.0]
    result = toy_session(toy_model(0.0), KTO(), fresh=True).step(labelled(False))
    assert result.loss == 0.5 and result.metrics["kto_advantage"] == 0
    assert result.metrics["kto_gradient_factor"] == 1


def test_metrics_are_of_what_they_say_and_of_nothing_where_a_batch_has_none_of_it():
    model, batch = toy_model(), labelled(False)
    metrics = toy_session(model, KTO(), TimestepSchedule(**ROUND)).step(batch).metrics
    rows = sides(model, batch)
    assert float(metrics["kto_policy_lose_err"]) == pytest.approx(float(rows[1][0].detach()), rel=1e-10)
    win = sum(float((rows[i][2] - rows[i][0]).detach()) for i in (0, 2)) / 2
    assert float(metrics["kto_win_adv"]) == pytest.approx(win, rel=1e-9)
    assert float(metrics["kto_liked_pct"]) == pytest.approx(200 / 3)
    alone = toy_session(model, KTO(sft_loss_weight=0.5)).step(labelled(False, [0, 0, 0]))
    assert alone.metrics["kto_win_adv"].isnan() and alone.metrics["kto_sft_loss"] == 0
    assert bool(alone.loss.isfinite())


@pytest.mark.parametrize("label", [True, 1, 1.0, "1", " Up "])
def test_words_of_liking(label):
    assert as_liked(label) is True


@pytest.mark.parametrize("label", [False, 0, -1, "false", "down"])
def test_words_of_disliking(label):
    assert as_liked(label) is False


def test_a_label_that_says_neither_is_told_with_its_file():
    batch = replace(labelled(False, ["up", "maybe", None]), files=("a.png", "b.png", "c.png"))
    with pytest.raises(
        TrainingError, match=r"b.png: 'label' is 'maybe'; expected one of 1, 1.0, true, up for an image"
    ):
        toy_session(toy_model(), KTO()).step(batch)


def test_without_labels_it_is_refused_before_weights_load():
    run = resolve_run({"method": {"kto": {}}}, Path("run.json"))
    assert [each.type for each in plan_run(run, {"data:image", "data:label"}).order] == ["timestep_schedule", "kto"]
    with pytest.raises(ConfigError, match=r"needs 'data:label'.*`columns` of every image data set"):
        plan_run(run, {"data:image"})
    pairs = resolve_run({"method": {"kto": {"label": None}}}, Path("run.json"))
    assert "paired_views" in [each.type for each in plan_run(pairs, {"data:image", "data:rejected"}).order]
