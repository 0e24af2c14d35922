"""MaPO, masked where the data has masks."""

from __future__ import annotations

from flowhooks.hooks.mapo import MaPOSpec
from flowhooks.methods.preference import PreferenceMethod, preference_parts


class MaPOMethod(PreferenceMethod, type="mapo", title="MaPO method"):
    """MaPO: pairs without a reference. Expands to mapo, mask_reducer and anchor_regularizer."""

    parts = preference_parts(
        MaPOSpec,
        anchor="Weight of the unmasked distance to the base on both sides; nothing else here needs a reference.",
    )
