"""Plain flow matching: the engine's defaults on masks where the data has them, or one loss among others."""

from __future__ import annotations

from typing import Any

from flowhooks.methods.context import Context, mask_blocks

#: Hooks that replace the ordinary loss, or what the network predicts for it.
_REPLACING = {"adjoint_target", "flow_dpo", "flow_grpo", "target_replacer", "teacher_velocity", "twin_flow_target"}
#: Hooks after which the prediction on the main view is not made at one noise level.
_OTHER_TIMES = {"dual_times", "interval_times"}


def expand(block: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """Hook blocks of plain fine-tuning: none but the mask where it is the whole loss, else the loss that is added."""
    others = {each["type"] for each in context.others}
    wants_mask = block["mask_dilate"] > 0
    if not others & (_REPLACING | _OTHER_TIMES):
        return mask_blocks(block["mask_dilate"], wants_mask, context)
    prediction = "data" if "on_policy_rollout" in others else "own" if others & _OTHER_TIMES else "main"
    masked = wants_mask if context.masked is None else context.masked
    dilate = block["mask_dilate"] if masked else 0
    return [
        {
            "type": "flow_matching_loss",
            "weight": block["weight"],
            "prediction": prediction,
            "masked": masked,
            "mask_dilate": dilate,
        }
    ]
