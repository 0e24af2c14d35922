"""The interval that each sample of a flow map trains on: options and declarations of the hook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import FLOW_MAP, SHIFT, HookSpec


class IntervalTimesSpec(HookSpec, type="interval_times", title="Interval times"):
    """Chooses the interval that each sample trains on."""

    slots = {"views", "metrics"}
    excludes = {"rollout": FLOW_MAP}
    implied_by = ("r_sigma",)
    page = "anyflow.md"
    words = {"needs": "`second_time`, `sigma` (not as a mixture)", "gives": "`r_sigma` (`sigma` too as a mixture)"}

    r_timestep_sampler: Literal["uniform", "zero", "mixture"] = option(
        "How the interval from t to r is chosen. `uniform`: r anywhere below t. `zero`: r = 0. `mixture`: t and r "
        "are the larger and the smaller of two uniform numbers, both shifted; some samples have r = t and some r = "
        "0.",
        default="uniform",
    )
    min_interval_ratio: float = option(
        "Least length of a `uniform` interval, in sigma.", default=0.02, minimum=0, exclusiveMaximum=1
    )
    diffusion_ratio: float = option(
        "Share of samples of the `mixture` with r = t, which train the plain velocity.",
        default=0.5,
        minimum=0,
        maximum=1,
    )
    zero_ratio: float = option(
        "Share of samples of the `mixture` with r = 0; the other intervals end anywhere.",
        default=0.25,
        minimum=0,
        maximum=1,
    )
    shift: float | str = option(
        "Shift of the `mixture`'s times: a number, or `scheduler` for the value of the pipeline's own scheduler.",
        default="scheduler",
        schema=SHIFT,
    )

    def declares(self) -> Mapping[str, Any]:
        own_sigma = self.r_timestep_sampler == "mixture"
        return {
            "needs": {"second_time"} | (set() if own_sigma else {"sigma"}),
            "gives": {"r_sigma"} | ({"sigma"} if own_sigma else set()),
        }

    def refusal(self) -> str | None:
        shares = self.diffusion_ratio, self.zero_ratio
        if sum(shares) > 1:
            return f"`diffusion_ratio` and `zero_ratio` are shares of one batch, got {shares[0]} and {shares[1]}"
        return None
