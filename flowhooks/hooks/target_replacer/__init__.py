"""The targets of flow maps: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import FLOW_MAP, HookSpec
from flowhooks.kernel.plan import POLICY


class TargetReplacerSpec(HookSpec, type="target_replacer", title="Target replacer"):
    """Sets the target of the average velocity over an interval."""

    slots = {"target:main", "error", "metrics"}
    excludes = {"rollout": FLOW_MAP}
    passes = (("main", POLICY),)
    papers = ("gu2026anyflow", "geng2025mean", "frans2024one")
    page = "anyflow.md"
    words = {"needs": "`r_sigma`, `role:<role>`"}

    target_mode: Literal["linear", "online_teacher", "flow_map", "shortcut"] = option(
        "The target on an interval from t to r. `linear`: the straight flow, `e - x0`. `online_teacher`: where the "
        "frozen base goes from t to r. `flow_map`: the MeanFlow identity with a difference in place of the "
        "derivative. `shortcut`: two half steps of the averaged weights.",
        default="online_teacher",
    )
    teacher_rollout_steps: int = option(
        "Number K of Euler steps of `online_teacher` from t to r. With 1 the target does not depend on r, and no "
        "flow map is learned.",
        default=1,
        minimum=1,
        maximum=10_000,
    )
    velocity: Literal["data", "reference"] = option(
        "The velocity that `flow_map` and `shortcut` build on. `data`: that of the data, `e - x0`. `reference`: the "
        "frozen base's at t, which varies less.",
        default="data",
    )
    difference_step: float = option(
        "Half width h of the difference of `flow_map`, in sigma. A small model that was trained for long on few "
        "times is rough in t: raise it.",
        default=0.005,
        exclusiveMinimum=0,
        exclusiveMaximum=0.5,
    )
    difference_ratio: float = option(
        "Half width of the difference as a share of the interval, where that is more than `difference_step`.",
        default=0.0,
        minimum=0,
        exclusiveMaximum=1,
    )
    guidance_scale: float = option(
        "`flow_map` only: guidance that is built into the student; 1 builds in none.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=10_000,
    )
    weighting: Literal["none", "sigma"] = option(
        "`sigma` weighs a sample by `15/4 t sqrt(1 - t)`; `none` weighs all alike.", default="none"
    )
    rescale: Literal["none", "branch", "sample"] = option(
        "`sample` divides each sample's loss by itself, detached. `branch` brings the mean losses of samples at r = "
        "0 and of those with a free end to that of samples at r = t. `none` leaves them.",
        default="none",
    )
    rescale_floor: float = option(
        "Smallest factor of `branch`, and the inverse of its largest.", default=0.1, exclusiveMinimum=0, maximum=1
    )
    loss_weight: float = option("Factor of the whole loss.", default=1.0, minimum=0, maximum=1_000_000)

    def unprompted(self) -> bool:
        return self.guidance_scale != 1

    def declares(self) -> Mapping[str, Any]:
        mode, on_reference = self.target_mode, self.velocity == "reference"
        built = mode in ("flow_map", "shortcut")
        roles = {"role:ema"} if mode == "shortcut" else set()
        if mode == "online_teacher" or (built and on_reference):
            roles |= {"role:reference"}
        asked = {"linear": 0, "online_teacher": self.teacher_rollout_steps, "flow_map": 1, "shortcut": 2}[mode]
        return {
            "needs": {"r_sigma", *roles},
            "queries": asked + (built and on_reference) + (self.guidance_scale != 1),
        }
