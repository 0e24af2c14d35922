"""Linear-DPO: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from flowhooks.documents.spec import option
from flowhooks.hooks.preference_spec import PairSpec


class LinearDPOSpec(PairSpec, type="linear_dpo", title="Linear-DPO"):
    """Learns from pairs, preferred against rejected, with a pull that fades linearly as the margin grows and never ends
    (arXiv 2605.21123)."""

    papers = ("li2026linear",)
    law = {"beta": 2.0, "norm_type": "sum", "margin_cap": 5.0, "win_weight": 0.5}
    detectors = (*PairSpec.detectors, "saturated")

    beta: float = option(
        "Strength of the preference, in units of `norm_type`: the pull on a pair is `0.5 - 0.2 * beta * margin` within "
        "`eta` and `1 - eta`.",
        default=5000.0,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )
    eta: float = option(
        "The least pull on a pair, and 1 less the greatest. Above 0 it never stops pushing the rejected side away, so "
        "give the run a guard. Published: 0.01 on a flow, 0.001 on predictions of noise.",
        default=0.01,
        minimum=0,
        maximum=0.5,
    )
