"""Flow-OPD: many teachers on the student's own trajectory, and an anchor that none of the tasks owns."""

from __future__ import annotations

from typing import Any

from flowhooks.methods.context import Context

_TEACHING = ("teachers", "task_column", "routes", "route", "estimator")
_ANCHOR = ("anchor", "anchor_weight")
_TURNS = "tasks_take_turns"


def expand(block: dict[str, Any], context: Context) -> list[dict[str, Any]]:
    """Hook blocks of Flow-OPD: the rollout, the teachers, the anchor."""
    teaching = {key: block[key] for key in _TEACHING}
    rollout = {key: value for key, value in block.items() if key not in (*_TEACHING, *_ANCHOR, _TURNS)}
    task_column = block["task_column"] if block[_TURNS] else None
    role = "reference" if block["anchor"] == "base" else f"adapter:{block['anchor']}"
    return [
        {"type": "on_policy_rollout", **rollout, "task_column": task_column},
        {"type": "teacher_velocity", **teaching},
        {"type": "anchor_regularizer", "role": role, "weight": block["anchor_weight"]},
    ]
