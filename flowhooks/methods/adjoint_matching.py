"""Deterministic adjoint matching: rewards by their own gradient, along the pipeline's ODE."""

from __future__ import annotations

from typing import Any

from flowhooks.methods.context import Context

_CONTROL = (
    "rewards",
    "adjoint",
    "regularizer",
    "reward_scale",
    "control_ratio",
    "lookahead_power",
    "clip_quantile",
    "clip_decay",
    "smoothing",
)
_OTHERS = ("truncate", "early", "early_visits", "anchor", "anchor_weight")


def expand(block: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """Hook blocks of adjoint matching: the rollout, the target, the anchor, and the gate if there is one."""
    rollout = {key: value for key, value in block.items() if key not in (*_CONTROL, *_OTHERS)}
    truncate = block["truncate"] or {}
    last_k, sigma_max = truncate.get("last_k"), truncate.get("sigma_max")
    whole = last_k is None and sigma_max is None
    rollout["last_steps"] = block["num_inference_steps"] if whole else last_k
    rollout["sigma_max"] = sigma_max
    rollout["early_visits"] = block["early_visits"] if block["early"] == "anchor" else 0
    at_base = block["anchor"] == "base"
    anchor = {"role": "reference"} if at_base else {"role": "adapter:anchor", "adapter": block["anchor"]}
    blocks = [
        {"type": "on_policy_rollout", "sampler": "ode", **rollout},
        {"type": "adjoint_target", **{key: block[key] for key in _CONTROL}},
        {"type": "anchor_regularizer", **anchor, "weight": block["anchor_weight"]},
    ]
    return [*blocks, {"type": "adapter_gate", "sigma": sigma_max}] if block["early"] == "gate" else blocks
