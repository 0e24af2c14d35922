"""Plain flow matching: the engine's defaults on masks where the data has them, or one loss among others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flowhooks.hooks.flow_matching_loss import FlowMatchingLossSpec
from flowhooks.hooks.mask_reducer import MaskReducerSpec
from flowhooks.hooks.registry import HOOKS, SOURCES
from flowhooks.methods.spec import Block, Context, Method, Part

#: Hooks that replace the ordinary loss, or what the network predicts for it.
_REPLACING = {type for type, spec in HOOKS.items() if {"objective", "target:main"} & set(spec.slots)}
#: Hooks after which the prediction on the main view is not made at one noise level.
_OTHER_TIMES = {"dual_times", "interval_times"}


class SupervisedMethod(Method, type="sft", title="Supervised fine-tuning"):
    """Plain flow matching on the images of the data, masked where the data has masks. Beside another method it is
    added to that method's loss."""

    last = True
    parts = (
        Part(
            hook=FlowMatchingLossSpec,
            without=("prediction", "masked"),
            changes={
                "weight": {
                    "description": "Weight of this loss beside that of another method; alone there is nothing to weigh "
                    "it against."
                }
            },
        ),
    )

    @classmethod
    def expand(cls, block: Block, context: Context) -> list[dict[str, Any]]:
        """Return only the mask where this is the whole loss, else the loss that is added."""
        others = {each["type"] for each in context.others}
        masked = context.wants_mask(block["mask_dilate"] > 0)
        dilate = block["mask_dilate"] if masked else 0
        if not others & (_REPLACING | _OTHER_TIMES):
            return [{"type": MaskReducerSpec.type, "mask_dilate": dilate}] if masked else []
        prediction = "data" if others & SOURCES else "own" if others & _OTHER_TIMES else "main"
        (loss,) = super().expand({**block, "mask_dilate": dilate}, context)
        return [{**loss, "prediction": prediction, "masked": masked}]

    @classmethod
    def contradictions(cls, block: Block, context: Context) -> Iterator[tuple[str, str]]:
        if not context.others and block["weight"] != 1:
            yield "weight", "weighs this loss against that of another method, and there is none; leave it out"
