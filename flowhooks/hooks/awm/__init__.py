"""Advantage weighted matching: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.scored_spec import ScoredObjectiveSpec


class AWMSpec(ScoredObjectiveSpec, type="awm", title="Advantage weighted matching"):
    """Learns from scored samples by their flow-matching errors, as a policy gradient does by likelihoods: an advantage
    times the clipped ratio of the model that sampled and the policy (arXiv 2509.25050)."""

    papers = ("xue2025awm",)
    page = "forward_process.md"

    weighting: Literal["none", "sigma", "sigma_squared", "power"] = option(
        "What an error L is before it is compared: L, `sigma` L, sigma squared times L, or with `power` sigma times "
        "L ** power / power.",
        default="power",
    )
    power: float = option("Exponent of the weighting `power`.", default=0.25, exclusiveMinimum=0, maximum=1)
    clip_range: float = option(
        "The ratio earns nothing beyond 1 plus and 1 minus this. 1 leaves it room up to 2.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    advantage_max: float = option(
        "Size of an advantage that is cut off at `advantage_clip`; the others are in proportion.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
