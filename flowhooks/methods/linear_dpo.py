"""Linear-DPO, masked where the data has masks."""

from __future__ import annotations

from flowhooks.hooks.linear_dpo import LinearDPOSpec
from flowhooks.methods.preference import PreferenceMethod, preference_parts


class LinearDPOMethod(PreferenceMethod, type="linear_dpo", title="Linear-DPO method"):
    """Linear-DPO: a pull on pairs that fades linearly and never ends. Expands to linear_dpo, mask_reducer and
    anchor_regularizer."""

    parts = preference_parts(LinearDPOSpec)
