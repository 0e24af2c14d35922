"""DiffusionNFT: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.scored_spec import ScoredObjectiveSpec


class DiffusionNFTSpec(ScoredObjectiveSpec, type="diffusion_nft", title="DiffusionNFT"):
    """Learns from scored samples without likelihoods: towards those that are better than their group, away from those
    that are worse, as seen from the model that sampled them (arXiv 2509.16117)."""

    papers = ("zheng2025diffusionnft",)
    page = "diffusion_nft.md"

    beta: float = option(
        "How far the two branches are from the old model: 1 puts the policy itself into the positive one.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    form: Literal["released", "paper"] = option(
        "`released`: the error of the clean sample, divided by its own size, times 5 / beta, as the authors' code has "
        "it. `paper`: the error of the velocity.",
        default="released",
    )
