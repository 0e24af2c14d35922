"""On-policy flow maps: options and declarations of the hook. The maths is in ``dmd``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import FLOW_MAP, SHIFT, HookSpec


class DistributionMatchingSpec(HookSpec, type="distribution_matching", title="Distribution matching"):
    """Trains a flow map on its own samples and moves them towards the teacher's (experimental)."""

    slots = {"penalty", "metrics"}
    papers = ("gu2026anyflow", "yin2023one", "yin2024improved")
    page = "anyflow_on_policy.md"
    whole_path = "weight"

    weight: float = option(
        "Weight of the loss on the samples. 0 switches the hook off, critic included.",
        default=1.0,
        minimum=0,
        maximum=1_000_000,
    )
    jumps: int = option(
        "A sample takes at most this many jumps from noise to data. Each step chooses how many at random, the same "
        "on all processes.",
        default=2,
        minimum=1,
        maximum=3,
    )
    shift: float | str = option(
        "Shift of the jumps' grid and of the times s at which samples are judged: a number, or `scheduler` for the "
        "value of the pipeline's own scheduler.",
        default="scheduler",
        schema=SHIFT,
    )
    critic_rank: int = option(
        "Rank of the critic, a second adapter that is trained on the samples.", default=16, minimum=1, maximum=65_536
    )
    critic_alpha: float | None = option(
        "The critic's update is scaled by `alpha / rank`; `null` takes the rank, a scale of 1.",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )

    def declares(self) -> Mapping[str, Any]:
        if not self.weight:
            return {}
        return {
            "excludes": {"rollout": FLOW_MAP},
            "needs": {"second_time", "role:reference"},
            "gives": {"role:critic"},
            # The jumps, the teacher, the critic, and the critic again where it is trained.
            "queries": self.jumps + 3,
        }
