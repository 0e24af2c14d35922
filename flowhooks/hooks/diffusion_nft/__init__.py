"""DiffusionNFT: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import POLICY


class DiffusionNFTSpec(HookSpec, type="diffusion_nft", title="DiffusionNFT"):
    """Learns from scored samples without likelihoods: towards those that are better than their group, away from those
    that are worse, as seen from the model that sampled them (arXiv 2509.16117)."""

    slots = {"objective", "metrics"}
    needs = {"ends", "role:old", "sigma"}
    excludes = {
        "best_and_worst": "{name} learns from all samples of a group, and {other} leaves two of them",
        "target:main": "{name} compares the policy with `e - x0` of a sample and with the model that sampled it, and "
        "{other} replaces the first",
        "error": "{name} makes errors of its own, so {other} would do nothing",
    }
    passes = (("main", POLICY), ("main", "old"))
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
