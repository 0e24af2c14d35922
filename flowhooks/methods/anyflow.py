"""AnyFlow: a flow map learnt on a stock model."""

from __future__ import annotations

from typing import Any

from flowhooks.methods.context import Context

_TIME = ("gate_value", "deltatime_type", "timestep_scale")
_INTERVALS = ("r_timestep_sampler", "min_interval_ratio", "diffusion_ratio", "zero_ratio", "shift")


def expand(block: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """Hook blocks of AnyFlow: the second time, the intervals, the target."""
    sampler = block["r_timestep_sampler"]
    if sampler is None:
        sampler = "mixture" if block["target_mode"] in ("flow_map", "shortcut") else "uniform"
    target = {key: value for key, value in block.items() if key not in (*_TIME, *_INTERVALS)}
    return [
        {"type": "time_conditioning", **{key: block[key] for key in _TIME}},
        {"type": "interval_times", **{key: block[key] for key in _INTERVALS}, "r_timestep_sampler": sampler},
        {"type": "target_replacer", **target},
    ]
