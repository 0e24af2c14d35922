"""Flow-DPO, masked where the data has masks."""

from __future__ import annotations

from typing import Any

from flowhooks.methods.context import Context, mask_blocks

_NOT_OF_THE_HOOK = ("mask_dilate", "anchor_alpha")


def expand(block: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """Hook blocks of Flow-DPO: the loss, the mask, and the anchor if it has any weight."""
    options = {key: value for key, value in block.items() if key not in _NOT_OF_THE_HOOK}
    wants_mask = block["mask_dilate"] > 0 or block["norm_type"] == "masked_mean"
    blocks = [{"type": "flow_dpo", **options}, *mask_blocks(block["mask_dilate"], wants_mask, context)]
    if block["anchor_alpha"] > 0:
        blocks.append({"type": "anchor_regularizer", "role": "reference", "weight": block["anchor_alpha"]})
    return blocks
