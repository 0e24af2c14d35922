"""Advantage weighted matching: scored samples of a lagging copy, kept near the base and near that copy."""

from __future__ import annotations

from flowhooks.hooks.awm import AWMSpec
from flowhooks.methods.scored import anchored, lagged, sampled
from flowhooks.methods.spec import Method, Part


class AWMMethod(Method, type="awm", title="Advantage weighted matching method"):
    """Advantage weighted matching: rewards of whole samples, by flow-matching errors in place of likelihoods. Expands
    to ends, lagged_copy, awm, and anchor_regularizer once for the base and once for the old model."""

    parts = (
        sampled(by="old"),
        lagged("old", most=0.3),
        Part(hook=AWMSpec),
        anchored(1e-3),
        anchored(1.0, role="old", option="old_anchor_weight"),
    )
