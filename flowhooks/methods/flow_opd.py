"""Flow-OPD: many teachers on the student's own trajectory, and one anchor for all tasks."""

from __future__ import annotations

from typing import Any

from flowhooks.documents.spec import option
from flowhooks.hooks.anchor_regularizer import OF_HOOKS, AnchorRegularizerSpec
from flowhooks.hooks.on_policy_rollout import FOR_RATIOS, NOISY_WEIGHTINGS, OnPolicyRolloutSpec
from flowhooks.hooks.teacher_velocity import TeacherVelocitySpec
from flowhooks.methods.spec import Block, Context, Method, Part


class FlowOPDMethod(Method, type="flow_opd", title="Flow-OPD method"):
    """Flow-OPD: many teachers, each an adapter, on the student's own trajectory. Expands to on_policy_rollout,
    teacher_velocity and anchor_regularizer."""

    parts = (
        Part(
            hook=OnPolicyRolloutSpec,
            without=("last_steps", "sigma_max", "early_visits", "task_column", *FOR_RATIOS),
            changes={"weighting": NOISY_WEIGHTINGS},
        ),
        Part(hook=TeacherVelocitySpec),
        Part(
            hook=AnchorRegularizerSpec,
            without=("role", *OF_HOOKS),
            names={"anchor_weight": "weight"},
            changes={"anchor_weight": {"description": "Weight of `anchor`; 0 costs nothing.", "default": 0.02}},
        ),
    )
    anchor: str = option(
        "What the student is held near to on every prompt: the name of a teacher, or `base`.",
        default="base",
        format="path",
    )
    tasks_take_turns: bool = option(
        "Micro-batches hold one task each, in turn: accumulate as many as there are tasks. `false` mixes tasks.",
        default=False,
    )

    @classmethod
    def expand(cls, block: Block, context: Context) -> list[dict[str, Any]]:
        rollout, teachers, anchor = super().expand(block, context)
        rollout["task_column"] = block["task_column"] if block["tasks_take_turns"] else None
        anchor["role"] = "reference" if block["anchor"] == "base" else f"adapter:{block['anchor']}"
        return [rollout, teachers, anchor]
