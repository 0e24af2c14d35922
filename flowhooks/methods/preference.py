"""What the methods of preferences share: masks where the data has them, and an anchor to the reference."""

from __future__ import annotations

from typing import Any

from flowhooks.hooks.anchor_regularizer import OF_HOOKS, AnchorRegularizerSpec
from flowhooks.hooks.mask_reducer import MaskReducerSpec
from flowhooks.hooks.preference_spec import BASE, PreferenceSpec, reference_role
from flowhooks.methods.spec import Block, Context, Method, Part

_ANCHOR = (
    "Weight of the unmasked distance to the reference on both sides. A value above 0 is advised with `auto_beta`, "
    "which removes the brake that a fixed beta is."
)


def _masked(block: Block, context: Context) -> bool:
    return context.wants_mask(block["mask_dilate"] > 0 or block["norm_type"] == "masked_mean")


def preference_parts(objective: type[PreferenceSpec], anchor: str = _ANCHOR) -> tuple[Part, ...]:
    """Return the parts of a method with this objective.

    Args:
        anchor: description of `anchor_alpha`.
    """
    return (
        Part(hook=objective),
        Part(hook=MaskReducerSpec, when=_masked),
        Part(
            hook=AnchorRegularizerSpec,
            without=OF_HOOKS,
            names={"anchor_alpha": "weight"},
            changes={"anchor_alpha": {"description": anchor}},
            fixed={"role": "reference"},
            when=lambda block, context: block["anchor_alpha"] > 0,
        ),
    )


class PreferenceMethod(Method):
    """Base of a method with an objective on preferences: its anchor holds the policy near the reference it names."""

    @classmethod
    def expand(cls, block: Block, context: Context) -> list[dict[str, Any]]:
        role = {"role": reference_role(block.get("reference", BASE))}
        blocks = super().expand(block, context)
        return [{**each, **role} if each["type"] == AnchorRegularizerSpec.type else each for each in blocks]
