"""Flow-GRPO: rewards of the student's own samples, and a divergence from the base."""

from __future__ import annotations

from flowhooks.hooks.anchor_regularizer import OF_HOOKS, AnchorRegularizerSpec
from flowhooks.hooks.flow_grpo import FlowGRPOSpec
from flowhooks.hooks.on_policy_rollout import NOISY_WEIGHTINGS, OnPolicyRolloutSpec
from flowhooks.methods.spec import Method, Part

_SAMPLER = (
    "`sde`: stochastic steps that keep the flow's marginals. `cps`: stochastic steps that keep the shares of data and "
    "noise."
)


class FlowGRPOMethod(Method, type="flow_grpo", title="Flow-GRPO method"):
    """Flow-GRPO: policy gradient on rewards of the student's own samples. Expands to on_policy_rollout, flow_grpo
    and anchor_regularizer."""

    parts = (
        Part(
            hook=OnPolicyRolloutSpec,
            without=("last_steps", "sigma_max", "early_visits"),
            changes={
                "group_size": {"default": 8, "minimum": 2},
                "sampler": {"enum": ["sde", "cps"], "description": _SAMPLER},
                "weighting": NOISY_WEIGHTINGS,
            },
        ),
        Part(hook=FlowGRPOSpec),
        Part(
            hook=AnchorRegularizerSpec,
            without=OF_HOOKS,
            names={"anchor_weight": "weight"},
            changes={
                "anchor_weight": {
                    "description": "Weight of the squared distance from the base's velocity; 0 costs nothing."
                }
            },
            fixed={"role": "reference"},
        ),
    )
