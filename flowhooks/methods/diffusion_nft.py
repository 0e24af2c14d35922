"""DiffusionNFT: scored samples of a lagging copy of the policy, and a divergence from the base."""

from __future__ import annotations

from flowhooks.hooks.anchor_regularizer import AnchorRegularizerSpec
from flowhooks.hooks.diffusion_nft import DiffusionNFTSpec
from flowhooks.hooks.ends import EndsSpec
from flowhooks.hooks.lagged_copy import LaggedCopySpec
from flowhooks.methods.spec import Method, Part


class DiffusionNFTMethod(Method, type="diffusion_nft", title="DiffusionNFT method"):
    """DiffusionNFT: rewards of whole samples, without likelihoods. Expands to ends, lagged_copy, diffusion_nft and
    anchor_regularizer."""

    parts = (
        Part(hook=EndsSpec, changes={"group_size": {"default": 8, "minimum": 2}}, fixed={"sampled_by": "old"}),
        Part(hook=LaggedCopySpec, names={f"old_{name}": name for name in ("every", "growth", "start", "most")}),
        Part(hook=DiffusionNFTSpec),
        Part(
            hook=AnchorRegularizerSpec,
            without=("adapter",),
            names={"anchor_weight": "weight"},
            changes={
                "anchor_weight": {
                    "description": "Weight of the squared distance from the base's velocity; 0 costs nothing.",
                    "default": 1e-4,
                }
            },
            fixed={"role": "reference"},
        ),
    )
