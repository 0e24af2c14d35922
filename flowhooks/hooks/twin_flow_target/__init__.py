"""The trajectories of TwinFlow: options and declarations of the hook. The maths is in ``trajectories``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import FLOW_MAP, HookSpec
from flowhooks.kernel.plan import POLICY


class TwinFlowTargetSpec(HookSpec, type="twin_flow_target", title="TwinFlow target"):
    """The target of TwinFlow's trajectories: jumps of the averaged weights after a first step along the data's velocity
    (experimental)."""

    slots = {"target:main", "metrics"}
    excludes = {"rollout": FLOW_MAP}
    needs = {"r_sigma", "role:ema"}
    passes = (("main", POLICY),)
    papers = ("cheng2025twinflow",)
    page = "twin_flow.md"

    estimate_order: int = option(
        "Number N of jumps of the averaged weights from the first step to the end of the interval. With 1 an "
        "interval learns only from one that is `delta_t` shorter, which is slow; 2 halves it.",
        default=2,
        minimum=1,
        maximum=1000,
    )
    delta_t: float = option(
        "Length of the first step, in sigma.", default=0.01, exclusiveMinimum=0, exclusiveMaximum=0.5
    )
    target_clamp: float | None = option(
        "The most that a target may differ from the prediction, for each element; `null` sets no limit.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )
    enhanced_ratio: float = option(
        "Share of the difference that the prompt makes to the averaged weights, which is added to the velocity: "
        "guidance of scale `1 / (1 - enhanced_ratio)` built into the student. The authors use 0.5.",
        default=0.0,
        minimum=0,
        exclusiveMaximum=1,
    )

    def unprompted(self) -> bool:
        return bool(self.enhanced_ratio)

    def declares(self) -> Mapping[str, Any]:
        # The average's jumps, the policy in full precision, and with guidance the average at t.
        return {"queries": self.estimate_order + 1 + bool(self.enhanced_ratio)}
