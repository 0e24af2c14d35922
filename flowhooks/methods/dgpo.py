"""DGPO: scored samples of a lagging copy of the policy, one noise for a group, and a divergence from the base."""

from __future__ import annotations

from flowhooks.hooks.dgpo import DGPOSpec
from flowhooks.methods.scored import anchored, lagged, sampled
from flowhooks.methods.spec import Method, Part


class DGPOMethod(Method, type="dgpo", title="DGPO method"):
    """DGPO: rewards of whole samples, the good ones of a group together against the bad ones. Expands to ends,
    lagged_copy, dgpo and anchor_regularizer."""

    parts = (
        sampled(by="old", noise="group"),
        lagged("old", most=0.3),
        # The base of the gains and that of the anchor are one prediction, guided alike.
        anchored(1e-3, guidance=1.0),
        Part(hook=DGPOSpec),
    )
