"""The average of the weights: its role, its state, and the state that an earlier release wrote."""

from __future__ import annotations

import pytest
import torch

from flowhooks.errors import CheckpointError
from flowhooks.hooks import AnchorRegularizer
from flowhooks.hooks.weight_average.hook import WeightAverage, averaged
from tests.hooks.toy import toy_batch, toy_model, toy_session


def session_of(model, *hooks):
    average = WeightAverage(decay=0.9)
    session = toy_session(model, average, *hooks)
    average.started(session)
    return session


def moved(session):
    """Weights that went on, and the average some way after them."""
    for step in range(3):
        with torch.no_grad():
            for parameter in session.parameters().values():
                parameter.add_(0.1 * (step + 1))
        session.updated()
    return session


def weights(session):
    return {name: parameter.detach().clone() for name, parameter in session.parameters().items()}


def test_the_average_is_in_place_inside_the_block_alone():
    session = session_of(toy_model())
    start, trained = weights(session), weights(moved(session))
    with averaged(session):
        inside = weights(session)
    after = weights(session)
    for name, value in trained.items():
        assert torch.equal(after[name], value)
        assert bool((inside[name] > start[name]).all()) and bool((inside[name] < value).all())


def test_without_an_average_the_weights_stay():
    session = toy_session(toy_model())
    before = weights(session)
    with averaged(session):
        assert all(torch.equal(value, before[name]) for name, value in weights(session).items())
    assert "ema" not in session.roles


def test_the_average_plays_the_role_ema():
    session = session_of(toy_model(), AnchorRegularizer(role="ema", weight=1.0))
    still = session.step(toy_batch(masked=False)).metrics["anchor_ema_distance"]
    apart = moved(session).step(toy_batch(masked=False)).metrics["anchor_ema_distance"]
    assert float(still) == 0 < float(apart)
    session.attachments.close()
    assert "ema" not in session.roles


def test_a_state_that_an_earlier_release_wrote_is_read():
    """It kept the average beside the state of hooks."""
    session = moved(session_of(toy_model(), AnchorRegularizer(weight=0.1)))
    state = session.state_dict()
    hooks = dict(state["hooks"])
    earlier = {**state, "hooks": hooks, "average": hooks.pop("weight_average")}
    for written in (state, earlier):
        other = session_of(toy_model(), AnchorRegularizer(weight=0.1))
        other.load_state_dict(written)
        found = other.state_dict()["hooks"]["weight_average"]
        assert found["updates"] == 3
        for name, value in state["hooks"]["weight_average"]["shadow"].items():
            assert torch.equal(found["shadow"][name], value)
    del earlier["average"]
    with pytest.raises(CheckpointError, match="this run has"):
        session.load_state_dict(earlier)
