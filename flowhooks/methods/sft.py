"""Plain flow matching: the engine's defaults, on masks where the data has them."""

from __future__ import annotations

from typing import Any

from flowhooks.methods.context import Context, mask_blocks


def expand(block: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """Hook blocks of plain fine-tuning."""
    return mask_blocks(block["mask_dilate"], block["mask_dilate"] > 0, context)
