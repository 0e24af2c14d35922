"""Deterministic adjoint matching: options and declarations of the hook. The maths is in ``maths``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import POLICY
from flowhooks.rewards.registry import masked_by


class AdjointTargetSpec(HookSpec, type="adjoint_target", title="Adjoint target"):
    """Climbs rewards by their own gradient, carried back along the pipeline's ODE: the target of a visited state is the
    base's velocity less the best control."""

    slots = {"views", "target:main", "metrics"}
    needs = {"rollout", "role:reference"}
    passes = (("main", POLICY),)
    papers = ("guo2026improved", "domingoenrich2024adjoint")
    page = "adjoint_matching.md"

    rewards: Sequence[Any] = option(
        "One block per reward, with `type`, the options of that reward, and `weight`.",
        minItems=1,
        items={"$ref": "../reward.schema.json"},
    )
    adjoint: Literal["lean", "full", "lookahead"] = option(
        "How gradients are carried back. `lean`: co-states through the base alone. `full`: the exact ones, through "
        "policy and base. `lookahead`: the reward's gradient where a straight line from the state ends.",
        default="lean",
    )
    regularizer: Mapping[str, Any] = option(
        'Cost of the control: powers above 1 with their weights above 0. `{"2": 1.0}` is the square. A higher power '
        "alone has no finite slope at 0, so add the square to it.",
        default={"2": 1.0},
        minProperties=1,
        propertyNames={"pattern": "^([2-9]|[1-9][0-9]+|1\\.[0-9]*[1-9][0-9]*|[1-9][0-9]*\\.[0-9]*[1-9][0-9]*)$"},
        additionalProperties={"type": "number", "exclusiveMinimum": 0, "maximum": 1000000},
    )
    reward_scale: float | None = option(
        "Factor on the rewards. `null` finds it once, in the first rollout, from `control_ratio`, and keeps it in "
        "checkpoints.",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    control_ratio: float = option(
        "Without `reward_scale`: the factor is set so that the control at the last step of the first rollout is "
        "this share of the base's velocity.",
        default=0.05,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    lookahead_power: float = option(
        "Under `lookahead`, gradients are multiplied by `1 - sigma` to this power.",
        default=1.0,
        minimum=0,
        maximum=1_000_000,
    )
    clip_quantile: float = option(
        "Co-states above the running average of this quantile of their sizes are clipped to it; 1 clips none.",
        default=0.9,
        exclusiveMinimum=0,
        maximum=1,
    )
    clip_decay: float = option(
        "Decay of the running average behind `clip_quantile`.", default=0.99, minimum=0, exclusiveMaximum=1
    )
    smoothing: Mapping[str, Any] | None = option(
        'Averages rewards and their gradient over noisy copies of each image: `{"samples": 4, "sigma": 0.05}` makes '
        "4 copies, with noise of standard deviation 0.05 in pixel values of 0 to 1. Each copy costs a reward but no "
        "decode; `null` makes none.",
        default=None,
        required=["samples", "sigma"],
        properties={
            "samples": {"description": "Copies of each image.", "type": "integer", "minimum": 1, "maximum": 10000},
            "sigma": {
                "description": "Standard deviation of the noise, in pixels of 0 to 1.",
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1000000,
            },
        },
        patternProperties={"^(\\$comment$|_comment)": {"description": "A remark for people; it is ignored."}},
        additionalProperties=False,
    )

    def declares(self) -> Mapping[str, Any]:
        # The base; with full co-states the policy too, and once more where rollouts are guided.
        return {
            "queries": 3 if self.adjoint == "full" else 1,
            "needs": {*type(self).needs, *masked_by(self.rewards)},
        }
