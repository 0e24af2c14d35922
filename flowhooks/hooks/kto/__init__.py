"""KTO: options and declarations of the hook, and what a label says. Maths and class are in ``hook``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowhooks.documents.spec import option
from flowhooks.hooks.preference_spec import LOSE, WIN, ComparedSpec
from flowhooks.hooks.spec import PAIRS

LIKED, DISLIKED = ("1", "1.0", "true", "up"), ("0", "0.0", "-1", "-1.0", "false", "down")


def as_liked(label: object) -> bool | None:
    """Return whether a cell says that an image was liked, whatever its letters' case; None where it says neither."""
    word = str(label).strip().lower()
    return True if word in LIKED else False if word in DISLIKED else None


class KTOSpec(ComparedSpec, type="kto", title="KTO"):
    """Learns from images that were liked or disliked one by one, with no need for pairs (arXiv 2402.01306,
    2404.04465)."""

    excludes = {
        "rollout": PAIRS.replace("pairs come", "labels come"),
        "target:main": "a sample is scored against one target, `e - x0`, under both models, and {other} replaces that "
        "of the policy",
    }
    papers = ("ethayarajh2024kto", "li2024aligning")
    detectors = ("win_error", "drift", "saturated")
    words = {
        "needs": "`data:<label>`, `role:reference`, or `role:ema` with `reference: ema`; with `label: null` "
        "`view:rejected` in place of the label",
        "gives": ComparedSpec.words["gives"],
    }
    law = {"beta": 20.0}

    label: str | None = option(
        "Name under `columns` of the data sets whose cell says whether an image was liked: 1, true or up, or 0, -1, "
        "false or down. `null`: both sides of pairs are labelled samples, the preferred one liked, the rejected one "
        "not.",
        default="label",
        minLength=1,
        maxLength=1000,
    )
    beta: float = option(
        "Strength of the preference, in units of `norm_type`.",
        default=1000.0,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )
    liked_weight: float = option("Weight of liked images.", default=1.0, minimum=0, maximum=1_000_000)
    disliked_weight: float = option(
        "Weight of disliked images. Where one kind is rare, weigh it so that both count alike.",
        default=1.0,
        minimum=0,
        maximum=1_000_000,
    )

    @property
    def sides(self) -> tuple[str, ...]:
        return (WIN, LOSE) if self.label is None else (WIN,)

    def declares(self) -> Mapping[str, Any]:
        declared = dict(super().declares())
        if self.label is not None:
            declared["needs"] = declared["needs"] - {"view:rejected"} | {f"data:{self.label}"}
        return declared
