"""Flow-GRPO: rewards of what the student draws, and a divergence from the base."""

from __future__ import annotations

from typing import Any

from flowhooks.methods.context import Context

_JUDGING = ("rewards", "advantage_clip")


def expand(block: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """Hook blocks of Flow-GRPO: the rollout, the objective, the anchor at the base."""
    judging = {key: block[key] for key in _JUDGING}
    rollout = {key: value for key, value in block.items() if key not in (*_JUDGING, "anchor_weight")}
    return [
        {"type": "on_policy_rollout", **rollout},
        {"type": "flow_grpo", **judging},
        {"type": "anchor_regularizer", "role": "reference", "weight": block["anchor_weight"]},
    ]
