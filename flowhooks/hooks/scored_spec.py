"""Options and declarations that objectives on scored samples share. Free of torch; their class is in ``scored``."""

from __future__ import annotations

from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import MAIN_VIEW, POLICY


class ScoredObjectiveSpec(HookSpec):
    """Learns from how much better a sample is than the others of its prompt. An objective derives from it, beside its
    own folder."""

    slots = {"objective", "metrics"}
    needs = {"ends", "role:old", "sigma"}
    gives = {"goodness"}
    excludes = {
        "best_and_worst": "{name} learns from all samples of a group, and {other} leaves two of them",
        "target:main": "{name} compares the policy with `e - x0` of a sample and with another model, and {other} "
        "replaces the first",
        "error": "{name} makes errors of its own, so {other} would do nothing",
    }
    passes = ((MAIN_VIEW, POLICY), (MAIN_VIEW, "old"))

    spread: Literal["batch", "group"] = option(
        "What rewards are divided by, less the mean of their group: the standard deviation of the whole batch, or of "
        "each group.",
        default="batch",
    )
    advantage_clip: float = option(
        "Advantages are clipped to this size, above and below 0, where a sample counts as wholly good or bad.",
        default=5.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
