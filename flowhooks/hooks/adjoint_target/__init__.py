"""Deterministic adjoint matching: what the hook takes, needs and asks for. The maths is in ``maths``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import POLICY


class AdjointTargetSpec(HookSpec, type="adjoint_target", title="Adjoint target"):
    """Climbs rewards by their own gradient, carried back along the pipeline's ODE: the target of a visited state is the
    base's velocity less the best control."""

    slots = {"views", "target:main", "metrics"}
    needs = {"rollout", "role:reference"}
    passes = (("main", POLICY),)
    papers = ("guo2026improved", "domingoenrich2024adjoint")
    page = "adjoint_matching.md"

    rewards: Sequence[Any] = option(
        "One block a reward, with type and weight.", minItems=1, items={"$ref": "../reward.schema.json"}
    )
    adjoint: Literal["lean", "full", "lookahead"] = option(
        "lean: co-states through the base alone. full: the exact ones, through policy and base. lookahead: "
        "the reward's gradient where a straight line from the state ends.",
        default="lean",
    )
    regularizer: Mapping[str, Any] = option(
        'The control\'s cost: power above 1 to weight. {"2": 1.0} is the square; a higher power alone has no '
        "finite slope at 0, so mix the square in.",
        default={"2": 1.0},
        minProperties=1,
        propertyNames={"pattern": "^([2-9]|[1-9][0-9]+|1\\.[0-9]*[1-9][0-9]*|[1-9][0-9]*\\.[0-9]*[1-9][0-9]*)$"},
        additionalProperties={"type": "number", "exclusiveMinimum": 0, "maximum": 1000000},
    )
    reward_scale: float | None = option(
        "Factor on rewards; null: found in the first rollout, from control_ratio.",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    control_ratio: float = option(
        "Without reward_scale: the share of the base's velocity that the first rollout's last control is scaled to.",
        default=0.05,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    lookahead_power: float = option(
        "Of 1 - sigma, the factor on gradients of lookahead.", default=1.0, minimum=0, maximum=1_000_000
    )
    clip_quantile: float = option(
        "Co-states above the running average of this quantile of their sizes are clipped to it; 1 clips none.",
        default=0.9,
        exclusiveMinimum=0,
        maximum=1,
    )
    clip_decay: float = option("Of that running average.", default=0.99, minimum=0, exclusiveMaximum=1)
    smoothing: Mapping[str, Any] | None = option(
        "Average the rewards' gradient over noisy copies of each picture; null: none.",
        default=None,
        required=["samples", "sigma"],
        properties={
            "samples": {"description": "Copies of each picture.", "type": "integer", "minimum": 1, "maximum": 10000},
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
        return {"queries": 3 if self.adjoint == "full" else 1}
