"""AnyFlow: a flow map learned on a stock model."""

from __future__ import annotations

from typing import Any

from flowhooks.hooks.interval_times import IntervalTimesSpec
from flowhooks.hooks.target_replacer import TargetReplacerSpec
from flowhooks.hooks.time_conditioning import TimeConditioningEnablerSpec
from flowhooks.methods.spec import Block, Context, Method, Part

_SAMPLER = (
    "uniform: r anywhere below t. zero: r = 0. mixture: t and r from two uniforms, some samples at r = t and some at "
    "r = 0. null: mixture under flow_map and shortcut, else uniform."
)


class AnyFlowMethod(Method, type="anyflow", title="AnyFlow method"):
    """Flow maps: a model that draws in few steps. Expands to time_conditioning, interval_times and target_replacer."""

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
