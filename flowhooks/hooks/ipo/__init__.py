"""IPO: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from flowhooks.documents.spec import option
from flowhooks.hooks.preference_spec import PairSpec


class IPOSpec(PairSpec, type="ipo", title="IPO"):
    """Learns from pairs, preferred against rejected, up to a margin of `1 / beta` over the reference and no further
    (arXiv 2310.12036)."""

    papers = ("azar2023general",)
    takes_ties = True
    law = {"beta": 2.0, "stop_when": {"detector": "drift", "limit": 1e-9, "patience": 3}}

    beta: float = option(
        "The margin that every pair is brought to is `1 / beta`, in units of `norm_type`. A larger beta holds the "
        "model nearer to the reference, and makes the loss, and its gradient, smaller.",
        default=100.0,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )
