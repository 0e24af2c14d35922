"""DGPO: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.scored_spec import ScoredObjectiveSpec
from flowhooks.kernel.plan import MAIN_VIEW


class DGPOSpec(ScoredObjectiveSpec, type="dgpo", title="DGPO"):
    """Learns from whole groups of scored samples as DPO does from pairs: the good ones together against the bad ones,
    under one noise (arXiv 2510.08425)."""

    needs = {*ScoredObjectiveSpec.needs, "group_noise"}
    words = {"needs": "`ends`, `group_noise`, `role:old`, `sigma`; `role:reference` with `reference: base`"}
    papers = ("luo2025dgpo",)
    page = "forward_process.md"

    beta: float = option(
        "How sharply the weight of a group falls with what it has gained over the reference.",
        default=100.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    clip_range: float = option(
        "A sample has no gradient once its likelihood over the old model's has moved by this, in the direction of its "
        "advantage.",
        default=1e-3,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    reference: Literal["base", "old"] = option(
        "What a gain is measured from: `base`, the model with its adapter off, or `old`, the lagged copy.",
        default="base",
    )
    reference_guidance: float = option(
        "Guidance of the base, by an empty prompt; 1 is none and costs nothing.",
        default=1.0,
        minimum=0,
        maximum=1000,
    )

    def declares(self) -> Mapping[str, Any]:
        if self.reference == "old":
            return {}
        return {
            "needs": {*self.needs, "role:reference"},
            "passes": (*self.passes, (MAIN_VIEW, "reference")),
            "queries": int(self.reference_guidance != 1),
        }

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.reference == "old" and self.reference_guidance != 1:
            yield (
                "reference_guidance",
                f"{self.reference_guidance} guides the base, and gains are measured from the old model; leave it at "
                "1, or set `reference` to 'base'",
            )

    def unprompted(self) -> bool:
        return self.reference_guidance != 1
