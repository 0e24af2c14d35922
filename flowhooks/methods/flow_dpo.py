"""Flow-DPO, masked where the data has masks."""

from __future__ import annotations

from flowhooks.hooks.anchor_regularizer import AnchorRegularizerSpec
from flowhooks.hooks.flow_dpo import FlowDPOSpec
from flowhooks.hooks.mask_reducer import MaskReducerSpec
from flowhooks.methods.spec import Block, Context, Method, Part

_ANCHOR = (
    "Weight of the unmasked distance to the reference on both sides. A value above 0 is advised with `auto_beta`, "
    "which removes the brake that a fixed beta is."
)


def _masked(block: Block, context: Context) -> bool:
    return context.wants_mask(block["mask_dilate"] > 0 or block["norm_type"] == "masked_mean")


class FlowDPOMethod(Method, type="flow_dpo", title="Flow-DPO method"):
    """Flow-DPO, and masked Flow-DPO where the data has masks. Expands to flow_dpo, mask_reducer and
    anchor_regularizer."""

    parts = (
        Part(hook=FlowDPOSpec),
        Part(hook=MaskReducerSpec, when=_masked),
        Part(
            hook=AnchorRegularizerSpec,
            without=("adapter",),
            names={"anchor_alpha": "weight"},
            changes={"anchor_alpha": {"description": _ANCHOR}},
            fixed={"role": "reference"},
            when=lambda block, context: block["anchor_alpha"] > 0,
        ),
    )
