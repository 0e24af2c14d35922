"""A second time for the network: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from typing import Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec


class TimeConditioningEnablerSpec(HookSpec, type="time_conditioning", title="Time conditioning"):
    """Gives the network a second time, the end of an interval. Added with these defaults to a run that needs one."""

    gives = {"second_time"}
    implied_by = ("second_time",)
    page = "anyflow.md"

    gate_value: float = option(
        "Weight g of the second time in the blend of embeddings, `(1 - g) E_t(t) + g E_d(d)`; it is constant.",
        default=0.25,
        minimum=0,
        maximum=1,
    )
    deltatime_type: Literal["r", "t-r"] = option(
        "What the second embedding sees as d: `r`, which leaves a fresh network as it is where r = t, or `t-r`.",
        default="r",
    )
    timestep_scale: float | None = option(
        "Unit of d; `null` takes the network's own, which the probe learns.",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
