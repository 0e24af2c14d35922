"""MaPO: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.preference_spec import LOSE, NORM_TYPE, WIN, PreferenceSpec
from flowhooks.kernel.plan import POLICY


class MaPOSpec(PreferenceSpec, type="mapo", title="MaPO"):
    """Learns from pairs, preferred against rejected, without a reference: the ordinary loss on the preferred side, and
    a margin between the policy's own errors (arXiv 2406.06424)."""

    needs = {"view:rejected"}
    passes = ((WIN, POLICY), (LOSE, POLICY))
    papers = ("hong2024margin",)
    law = {"beta": 2.0}
    beta_of_errors = False

    beta: float = option(
        "How sharply both sides are told apart: the factor of the margin in the sigmoid. A margin lies between -1 and "
        "1, and is small where errors are alike.",
        default=1000.0,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )
    margin_weight: float = option(
        "Weight of the margin's loss beside the ordinary loss on the preferred side.",
        default=0.1,
        minimum=0,
        maximum=1_000_000,
    )
    norm_type: Literal["mean", "masked_mean"] = option(
        NORM_TYPE.replace("`sum` and `mean` go", "`mean` goes"), default="mean"
    )
