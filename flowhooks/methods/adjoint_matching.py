"""Deterministic adjoint matching: rewards by their own gradient, along the pipeline's ODE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from flowhooks.documents.spec import closed_object, option
from flowhooks.hooks.adapter_gate import AdapterGateSpec
from flowhooks.hooks.adjoint_target import AdjointTargetSpec
from flowhooks.hooks.anchor_regularizer import OF_HOOKS, AnchorRegularizerSpec
from flowhooks.hooks.on_policy_rollout import FOR_RATIOS, OnPolicyRolloutSpec
from flowhooks.methods.spec import Block, Context, Method, Part

_LAST_K = {"type": ["integer", "null"], "minimum": 1, "maximum": 1_000_000_000, "default": None}
_SIGMA_MAX = {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1, "default": None}
_WEIGHTING = {
    "description": "Weight W of a visited state. `dt`: the step's length relative to the mean length, as in the cost. "
    "`uniform`: 1. `x_t`: the length squared. `x0`: sigma squared.",
    "enum": ["dt", "uniform", "x_t", "x0"],
    "default": "dt",
}
_ARGUMENTS = (
    "Arguments for the pipeline's call in rollouts, such as `guidance_scale` and `negative_prompt`. Guidance is off "
    "unless it is named here, and off wherever velocities are compared."
)
_EARLY_VISITS = (
    "With `early` `anchor`: how many early states are visited in each rollout, at random; each stands for all."
)
_ANCHOR_WEIGHT = "Weight of the squared distance from the anchor's velocity on every visited state; 0 costs nothing."


class AdjointMatchingMethod(Method, type="adjoint_matching", title="Adjoint matching method"):
    """Deterministic adjoint matching: climb rewards by their own gradient, along the pipeline's ODE. Expands to
    on_policy_rollout, adjoint_target and anchor_regularizer."""

    parts = (
        Part(
            hook=OnPolicyRolloutSpec,
            without=("noise_level", "window", "visits", "train_fraction", "last_steps", "sigma_max", *FOR_RATIOS),
            changes={
                "num_inference_steps": {"default": 28},
                "weighting": _WEIGHTING,
                "pipeline_arguments": {"description": _ARGUMENTS},
                "early_visits": {"description": _EARLY_VISITS, "default": 1, "minimum": 1},
            },
            fixed={"sampler": "ode"},
        ),
        Part(hook=AdjointTargetSpec),
        Part(
            hook=AnchorRegularizerSpec,
            without=("role", *OF_HOOKS),
            names={"anchor_weight": "weight"},
            changes={"anchor_weight": {"description": _ANCHOR_WEIGHT}},
        ),
    )
    truncate: Mapping[str, Any] | None = option(
        "Which steps the adjoint reaches: the last `last_k`, or those that start at or below `sigma_max`. It reaches "
        "all steps where this is `null`, or both are.",
        default={"last_k": 3},
        schema=closed_object(
            {
                "last_k": {"description": "This many steps at the end.", **_LAST_K},
                "sigma_max": {"description": "Steps that start at or below this sigma.", **_SIGMA_MAX},
            }
        ),
    )
    early: Literal["anchor", "free", "gate"] = option(
        "What happens in the steps that the adjoint does not reach. `anchor`: they are held at the base's velocity. "
        "`free`: they are not visited. `gate`: they are not visited, and the adapter is off there, in training as at "
        "inference.",
        default="anchor",
    )
    anchor: str = option(
        "What `anchor_weight` holds the model near: `base`, or the file, folder or Hub id of a frozen adapter.",
        default="base",
        format="path",
        minLength=1,
    )

    @classmethod
    def expand(cls, block: Block, context: Context) -> list[dict[str, Any]]:
        rollout, target, anchor = super().expand(block, context)
        truncate = block["truncate"] or {}
        last_k, sigma_max = truncate.get("last_k"), truncate.get("sigma_max")
        whole = last_k is None and sigma_max is None
        rollout["last_steps"] = block["num_inference_steps"] if whole else last_k
        rollout["sigma_max"] = sigma_max
        if block["early"] != "anchor":
            rollout["early_visits"] = 0
        at_base = block["anchor"] == "base"
        anchor |= {"role": "reference"} if at_base else {"role": "adapter:anchor", "adapter": block["anchor"]}
        gate = [{"type": AdapterGateSpec.type, "sigma": sigma_max}] if block["early"] == "gate" else []
        return [rollout, target, anchor, *gate]

    @classmethod
    def contradictions(cls, block: Block, context: Context) -> Iterator[tuple[str, str]]:
        if block["early"] == "gate" and (block["truncate"] or {}).get("sigma_max") is None:
            yield (
                "early",
                "'gate' keeps the adapter off above a sigma, whatever the number of steps; say which, as in "
                '"truncate": {"sigma_max": 0.5}',
            )
