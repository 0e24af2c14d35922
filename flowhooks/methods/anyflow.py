"""AnyFlow: a flow map learned on a stock model."""

from __future__ import annotations

from typing import Any

from flowhooks.hooks.interval_times import IntervalTimesSpec
from flowhooks.hooks.target_replacer import TargetReplacerSpec
from flowhooks.hooks.time_conditioning import TimeConditioningEnablerSpec
from flowhooks.methods.spec import Block, Context, Method, Part

_SAMPLER = (
    "How the interval from t to r is chosen. `uniform`: r anywhere below t. `zero`: r = 0. `mixture`: t and r are the "
    "larger and the smaller of two uniform numbers, both shifted; some samples have r = t and some r = 0. `null` is "
    "`mixture` under `flow_map` and `shortcut`, else `uniform`."
)


class AnyFlowMethod(Method, type="anyflow", title="AnyFlow method"):
    """Flow maps: a model that generates in few steps. Expands to time_conditioning, interval_times and
    target_replacer."""

    parts = (
        Part(hook=TimeConditioningEnablerSpec),
        Part(
            hook=IntervalTimesSpec,
            changes={
                "r_timestep_sampler": {
                    "description": _SAMPLER,
                    "type": ["string", "null"],
                    "enum": ["uniform", "zero", "mixture", None],
                    "default": None,
                }
            },
        ),
        Part(hook=TargetReplacerSpec),
    )

    @classmethod
    def expand(cls, block: Block, context: Context) -> list[dict[str, Any]]:
        sampler = block["r_timestep_sampler"]
        if sampler is None:
            sampler = "mixture" if block["target_mode"] in ("flow_map", "shortcut") else "uniform"
        return super().expand({**block, "r_timestep_sampler": sampler}, context)
