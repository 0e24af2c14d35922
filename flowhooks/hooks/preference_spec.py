"""Options and declarations that objectives of preferences share. Free of torch; their class is in ``preference``."""

from __future__ import annotations

from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import PAIRS, HookSpec
from flowhooks.kernel.plan import MAIN_VIEW, POLICY

#: The views of a pair.
WIN, LOSE = MAIN_VIEW, "rejected"
NORM_TYPE = (
    "How the error of a sample becomes one number. `sum` and `mean` go over all latent elements. `masked_mean` "
    "is the sum over the mask divided by the mask's own sum (at least 1), or `mean` where there is no mask."
)
ONE_TARGET = (
    "a pair is scored against one target, `e - x0`, on both sides and under both models, and {other} replaces it on "
    "the preferred side of the policy"
)


def both_sides(*roles: str) -> tuple[tuple[str, str], ...]:
    """Return the passes in which each role predicts on both sides of a pair."""
    return tuple((view, role) for role in roles for view in (WIN, LOSE))


class PreferenceSpec(HookSpec):
    """Learns from images that people prefer to others. An objective derives from it, beside its own folder."""

    slots = {"reduce", "objective", "metrics"}
    wants = {"mask"}
    excludes = {"rollout": PAIRS, "target:main": ONE_TARGET}
    page = "preferences.md"

    norm_type: Literal["sum", "mean", "masked_mean"] = option(NORM_TYPE, default="mean")
    sft_loss_weight: float = option(
        "Weight of the ordinary flow-matching loss on the preferred side, unmasked, which is added.",
        default=0.0,
        minimum=0,
        maximum=1_000_000,
    )


class PairSpec(PreferenceSpec):
    """Learns from pairs by how much better than a reference the policy is on either side."""

    needs = {"view:rejected", "role:reference"}
    passes = both_sides(POLICY, "reference")
