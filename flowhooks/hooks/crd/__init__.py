"""CRD: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.scored_spec import ScoredObjectiveSpec


class CRDSpec(ScoredObjectiveSpec, type="crd", title="Centred reward distillation"):
    """Learns from scored samples until what each has gained over the old model is its reward, both as seen from the
    mean of their group (arXiv 2603.14128)."""

    papers = ("zhu2026crd",)
    page = "forward_process.md"

    beta: float = option(
        "Factor of the gains: the larger, the less the policy moves for a reward.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    form: Literal["velocity", "relative"] = option(
        "`velocity`: the error of the velocity. `relative`: that of the clean sample, divided by its own size, as in "
        "`diffusion_nft`.",
        default="velocity",
    )
