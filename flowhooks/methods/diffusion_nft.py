"""DiffusionNFT: scored samples of a lagging copy of the policy, and a divergence from the base."""

from __future__ import annotations

from flowhooks.hooks.diffusion_nft import DiffusionNFTSpec
from flowhooks.methods.scored import anchored, lagged, sampled
from flowhooks.methods.spec import Method, Part


class DiffusionNFTMethod(Method, type="diffusion_nft", title="DiffusionNFT method"):
    """DiffusionNFT: rewards of whole samples, without likelihoods. Expands to ends, lagged_copy, diffusion_nft and
    anchor_regularizer."""

    parts = (sampled(by="old", offered=False), lagged("old"), Part(hook=DiffusionNFTSpec), anchored(1e-4))
