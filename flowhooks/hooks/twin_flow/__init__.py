"""The second branch of TwinFlow: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import FLOW_MAP, SHIFT, HookSpec


class TwinFlowSpec(HookSpec, type="twin_flow", title="TwinFlow"):
    """TwinFlow's second branch: at negative times the network learns the flow to its own one-step samples, which are
    corrected by the difference of the branches (experimental)."""

    slots = {"penalty", "metrics"}
    papers = ("cheng2025twinflow",)
    page = "twin_flow.md"
    whole_path = "adversarial_weight"

    adversarial_weight: float = option(
        "Weight of the loss at negative times. 0 switches the hook off, and needs `rectification_weight` at 0 too.",
        default=1.0,
        minimum=0,
        maximum=1_000_000,
    )
    rectification_weight: float = option(
        "Weight of the loss that corrects one-step samples. 0 trains the branch at negative times only, which then "
        "corrects nothing.",
        default=1.0,
        minimum=0,
        maximum=1_000_000,
    )
    shift: float | str = option(
        "Shift of the times s at which samples are noised: a number, or `scheduler` for the value of the pipeline's "
        "own scheduler. The authors use 1, which chooses s evenly.",
        default="scheduler",
        schema=SHIFT,
    )
    difference_clamp: float | None = option(
        "The most that the difference of the branches may ask for, for each element; `null` sets no limit.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )

    def declares(self) -> Mapping[str, Any]:
        if not self.adversarial_weight:
            return {}
        return {
            "excludes": {"rollout": FLOW_MAP},
            "needs": {"second_time"},
            "gives": {"negative_times"},
            # The sample, the negative branch, and where samples are corrected both branches at once.
            "queries": 2 + bool(self.rectification_weight),
        }

    def refusal(self) -> str | None:
        if self.rectification_weight and not self.adversarial_weight:
            return (
                f"`rectification_weight` is {self.rectification_weight}, but with an `adversarial_weight` of 0 nothing "
                "trains the branch it corrects by; set both to 0, or neither"
            )
        return None
