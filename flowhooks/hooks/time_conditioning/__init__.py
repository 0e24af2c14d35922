"""A second time for the network: what the hook takes and gives. The class is in ``hook``."""

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
        "Weight of the second time's embedding in the blend, a constant in [0, 1].", default=0.25, minimum=0, maximum=1
    )
    deltatime_type: Literal["r", "t-r"] = option(
        "What the second embedding sees: r, which leaves a fresh network as it is where r = t, or t-r.", default="r"
    )
    timestep_scale: float | None = option(
        "Unit of the second time, in place of the network's own, which the probe learns; null keeps that.",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
