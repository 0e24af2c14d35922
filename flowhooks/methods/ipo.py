"""IPO, masked where the data has masks."""

from __future__ import annotations

from flowhooks.hooks.ipo import IPOSpec
from flowhooks.methods.preference import PreferenceMethod, preference_parts


class IPOMethod(PreferenceMethod, type="ipo", title="IPO method"):
    """IPO: pairs are brought to one margin over the reference. Expands to ipo, mask_reducer and anchor_regularizer."""

    parts = preference_parts(IPOSpec)
