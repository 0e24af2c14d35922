"""KTO, masked where the data has masks."""

from __future__ import annotations

from flowhooks.hooks.kto import KTOSpec
from flowhooks.methods.preference import PreferenceMethod, preference_parts


class KTOMethod(PreferenceMethod, type="kto", title="KTO method"):
    """KTO: images that were liked or disliked one by one. Expands to kto, mask_reducer and anchor_regularizer."""

    parts = preference_parts(KTOSpec)
