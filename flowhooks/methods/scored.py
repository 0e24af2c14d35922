"""What the methods of scored samples share: groups sampled by a copy that lags behind, and anchors."""

from __future__ import annotations

from typing import Any

from flowhooks.hooks.anchor_regularizer import OF_HOOKS, AnchorRegularizerSpec
from flowhooks.hooks.ends import EndsSpec
from flowhooks.hooks.lagged_copy import LaggedCopySpec
from flowhooks.methods.spec import Block, Part

_KEPT = ("every", "growth", "start", "least", "most")


def sampled(*, by: str, offered: bool = True, noise: str = "sample") -> Part:
    """Return the part that samples groups of 8.

    Args:
        by: role of the sampler; where ``offered``, the default of an option.
        noise: what has a noise of its own, see the option.
    """
    changes: dict[str, dict[str, Any]] = {"group_size": {"default": 8, "minimum": 2}}
    fixed: dict[str, Any] = {"noise": noise}
    if offered:
        changes["sampled_by"] = {"default": by}
    else:
        fixed["sampled_by"] = by
    return Part(hook=EndsSpec, changes=changes, fixed=fixed)


def lagged(role: str, **defaults: float) -> Part:
    """Return the part that keeps the copy of a role, with other defaults; its options begin with the role's name. That
    of a sampler is there where it samples."""

    def samples(block: Block, context: object) -> bool:
        return block["sampled_by"] == role

    return Part(
        hook=LaggedCopySpec,
        names={f"{role}_{name}": name for name in _KEPT},
        changes={f"{role}_{name}": {"default": value} for name, value in defaults.items()},
        fixed={"role": role},
        when=None if role == "old" else samples,
    )


def anchored(
    weight: float,
    *,
    role: str = "reference",
    option: str = "anchor_weight",
    least: float | None = None,
    guidance: float | None = None,
) -> Part:
    """Return the part that keeps the policy near a role.

    Args:
        weight: its default weight.
        option: the method's name for it.
        least, guidance: defaults of the options `anchor_least_weight` and `reference_guidance`; None offers them not.
    """
    whose = {"reference": "the base's velocity", "old": "the old model's velocity"}[role]
    text = f"Weight of the squared distance from {whose}; 0 costs nothing."
    names, changes = {option: "weight"}, {option: {"description": text, "default": weight}}
    for own, name, default in (
        ("least_weight", "anchor_least_weight", least),
        ("guidance_scale", "reference_guidance", guidance),
    ):
        if default is not None:
            names[name], changes[name] = own, {"default": default}
    return Part(
        hook=AnchorRegularizerSpec,
        without=[name for name in OF_HOOKS if name not in names.values()],
        names=names,
        changes=changes,
        fixed={"role": role},
    )
