"""Flow-DPO, masked where the data has masks."""

from __future__ import annotations

from flowhooks.hooks.flow_dpo import FlowDPOSpec
from flowhooks.methods.preference import PreferenceMethod, preference_parts


class FlowDPOMethod(PreferenceMethod, type="flow_dpo", title="Flow-DPO method"):
    """Flow-DPO, and masked Flow-DPO where the data has masks. Expands to flow_dpo, mask_reducer and
    anchor_regularizer."""

    parts = preference_parts(FlowDPOSpec)
