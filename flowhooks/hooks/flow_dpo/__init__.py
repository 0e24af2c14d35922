"""Flow-DPO: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.preference_spec import NORM_TYPE, PairSpec


class FlowDPOSpec(PairSpec, type="flow_dpo", title="Flow-DPO"):
    """Learns from pairs, preferred against rejected, with the adapter-free model as reference (arXiv 2501.13918,
    2311.12908)."""

    papers = ("liu2025improving", "wallace2023diffusion")
    law = {"beta": 2.0}
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
        "The least beta that `auto_beta` may set; `null` sets no bound. The log says when the bound binds.",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )
    auto_beta_max: float | None = option(
        "The largest beta that `auto_beta` may set; `null` sets no bound. The log says when the bound binds.",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000_000,
    )
    norm_type: Literal["sum", "mean", "masked_mean"] = option(NORM_TYPE, default="sum")

    def faults(self) -> Iterator[tuple[str, str]]:
        low, high = self.auto_beta_min, self.auto_beta_max
        if low is not None and high is not None and low > high:
            yield "auto_beta_min", f"{low} is above `auto_beta_max` {high}; swap the two"
