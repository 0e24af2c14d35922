"""Two noise levels in one sample: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec


class DualTimesSpec(HookSpec, type="dual_times", title="Dual times"):
    """Gives each image token one of two sigmas, sampled independently from the density of timestep_schedule."""

    slots = {"views"}
    needs = {"density"}
    gives = {"token_sigma"}
    excludes = {
        "interval_times": "an interval starts at one noise level, and {name} gives the tokens of a sample two",
        "rollout": "two noise levels are put on an image of the data, and {other} trains on samples that it generates, "
        "at the levels that its sampler goes through",
    }
    implied_by = ("token_sigma",)
    papers = ("chefer2026self",)
    page = "self_flow.md"

    mask_ratio: float | None = option(
        "Share of tokens at the second sigma. `null` takes 0.25 for images, 0.1 for videos and 0.5 for sound.",
        default=None,
        minimum=0,
        maximum=0.5,
    )
    selection: Literal["exact", "bernoulli"] = option(
        "`exact`: that share of each sample's tokens, at least one. `bernoulli`: each token by itself, with that "
        "probability.",
        default="exact",
    )
