"""Plain flow matching: the engine's defaults on masks where the data has them, or one loss among others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flowhooks.hooks.flow_matching_loss import FlowMatchingLossSpec
from flowhooks.hooks.mask_reducer import MaskReducerSpec
from flowhooks.hooks.registry import HOOKS, SOURCES
from flowhooks.methods.spec import Block, Context, Method, Part

#: Slots of hooks that replace the ordinary loss, or what the network predicts for it.
_REPLACING = {"objective", "target:main"}
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
        if not (others & _OTHER_TIMES or any(map(_replaces, context.others))):
            return [{"type": MaskReducerSpec.type, "mask_dilate": dilate}] if masked else []
        prediction = "data" if others & SOURCES else "own" if others & _OTHER_TIMES else "main"
        (loss,) = super().expand({**block, "mask_dilate": dilate}, context)
        return [{**loss, "prediction": prediction, "masked": masked}]

    @classmethod
    def contradictions(cls, block: Block, context: Context) -> Iterator[tuple[str, str]]:
        if not context.others and block["weight"] != 1:
            yield "weight", "weighs this loss against that of another method, and there is none; leave it out"


def _replaces(block: Block) -> bool:
    """Return whether a hook, under these options, replaces the ordinary loss; a hook of the user's own is not known."""
    spec = HOOKS.get(block["type"])
    options = {name: value for name, value in block.items() if name != "type"}
    return spec is not None and bool(_REPLACING & set(spec.declaration(options)["slots"]))
