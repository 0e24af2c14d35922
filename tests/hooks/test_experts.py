"""Hooks that draw from pure noise refuse one network of two experts."""

from __future__ import annotations

import pytest

import flowhooks
from flowhooks.errors import ModelError
from tests.families import learnt


@pytest.fixture(scope="module")
def expert():
    return learnt("wan-two-experts")


@pytest.mark.parametrize("kind", ["distribution_matching", "twin_flow"])
def test_one_of_two_experts_is_refused(kind, expert):
    run = {"adapter": {"rank": 2}, "hooks": [{"type": kind}], "training": {"use_ema": True}}
    with (
        pytest.raises(ModelError, match=f"'{kind}' generates samples .* only called at sigma"),
        flowhooks.attach(expert, run),
    ):
        pass
