"""Flow-DPO: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.preference_spec import NORM_TYPE, PairSpec

#: Bounds of a beta that `auto_beta` finds, under a mean.
AUTO_BETA_RANGE = (10.0, 1_000_000.0)
_BY_DEFAULT = (
    "`null`: {:,.0f} under `mean` and `masked_mean`, and under `sum` that divided by the number of a sample's latent "
    "elements. The log says when the bound binds."
)


def auto_beta_bounds(options: Mapping[str, Any], elements: int) -> tuple[float, float]:
    """Return the least and the largest beta that `auto_beta` may set, in units of `norm_type`. A bound of the user's
    beyond the other end's default takes that away.

    Args:
        options: complete options of ``flow_dpo``.
        elements: latent elements of a sample.
    """
    scale = elements if options["norm_type"] == "sum" else 1
    low, high = options["auto_beta_min"], options["auto_beta_max"]
    least, most = (bound / scale for bound in AUTO_BETA_RANGE)
    return (
        (least if high is None or high > least else 0.0) if low is None else low,
        (most if low is None or low < most else math.inf) if high is None else high,
    )


class FlowDPOSpec(PairSpec, type="flow_dpo", title="Flow-DPO"):
    """Learns from pairs, preferred against rejected, with the adapter-free model as reference (arXiv 2501.13918,
    2311.12908)."""

    papers = ("liu2025improving", "wallace2023diffusion")
    law = {"beta": 2.0}
    detectors = (*PairSpec.detectors, "saturated")
    page = "flow_dpo.md"

    beta: float = option(
        "Strength of the preference, and the value that `auto_beta` starts from. It means nothing without "
        "`norm_type`: for latents of n elements, a beta under `sum` that does the same as one under `mean` is n "
        "times smaller. `flowhooks explain` prints both.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )
    auto_beta: bool = option(
        "Adapts beta to the running size of the margin, so that the average pair keeps a gradient factor of "
        "`auto_beta_target_gf` and the sigmoid neither saturates nor idles.",
        default=False,
    )
    auto_beta_target_gf: float = option(
        "Gradient factor g that `auto_beta` steers to: `beta = 2 ln((1 - g) / g) / EMA(abs(margin))`. Strictly "
        "between 0 and 0.5.",
        default=0.2,
        exclusiveMinimum=0,
        exclusiveMaximum=0.5,
    )
    auto_beta_decay: float = option(
        "Decay of the running average of the margin, which is bias-corrected, shared by all processes, and kept in "
        "checkpoints.",
        default=0.99,
        minimum=0,
        exclusiveMaximum=1,
    )
    auto_beta_min: float | None = option(
        f"The least beta that `auto_beta` may set. {_BY_DEFAULT.format(AUTO_BETA_RANGE[0])}",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )
    auto_beta_max: float | None = option(
        f"The largest beta that `auto_beta` may set. {_BY_DEFAULT.format(AUTO_BETA_RANGE[1])}",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )
    norm_type: Literal["sum", "mean", "masked_mean"] = option(NORM_TYPE, default="sum")

    def faults(self) -> Iterator[tuple[str, str]]:
        yield from super().faults()
        low, high = self.auto_beta_min, self.auto_beta_max
        if low is not None and high is not None and low > high:
            yield "auto_beta_min", f"{low} is above `auto_beta_max` {high}; swap the two"
