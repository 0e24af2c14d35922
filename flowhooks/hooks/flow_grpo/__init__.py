"""Flow-GRPO: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import POLICY
from flowhooks.rewards.registry import masked_by


class FlowGRPOSpec(HookSpec, type="flow_grpo", title="Flow-GRPO"):
    """Policy gradient on rewards: images of one prompt compete, along stochastic steps."""

    slots = {"objective", "metrics"}
    needs = {"rollout"}
    excludes = {
        "target:main": "the loss of {name} is made of rewards and asks for no target, so {other} would do nothing",
        "adapter_gate": "{name} samples in stochastic steps, and a gate needs deterministic ones",
    }
    passes = (("main", POLICY),)
    papers = ("liu2025flowgrpo",)
    page = "flow_grpo.md"

    rewards: Sequence[Any] = option(
        "One block per reward, with `type`, the options of that reward, and `weight`.",
        minItems=1,
        items={"$ref": "../reward.schema.json"},
    )
    advantage_clip: float = option(
        "Advantages are clipped to this size, above and below 0.", default=5.0, exclusiveMinimum=0, maximum=1_000_000
    )

    def declares(self) -> Mapping[str, Any]:
        return {"needs": {*type(self).needs, *masked_by(self.rewards)}}
