"""An anchor to another role: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import EVERY_VIEW, POLICY

#: Options for runs that name the hook; a method that offers one of them says so.
OF_HOOKS = ("adapter", "guidance_scale", "least_weight")
_GUIDED = (
    "states of {other} are predicted by the pipeline's own call, which guides every role; leave `guidance_scale` of "
    "{name} at 1, and set that of the rollout"
)
_PAIRED = "{name} with `guidance_scale` keeps one view near the guided prediction, and {other} adds a rejected one"


class AnchorRegularizerSpec(HookSpec, type="anchor_regularizer", title="Anchor regularizer"):
    """Keeps the prediction near that of another role, over the whole frame, mask or not."""

    slots = {"penalty", "metrics"}
    page = "flow_dpo.md"
    words = {
        "needs": "`role:<role>`, or `role:reference` with `adapter`",
        "gives": "with `adapter`: `role:<role>`",
    }
    conditions = [
        {
            "if": {"properties": {"adapter": {"type": "string"}}, "required": ["adapter"]},
            "then": {
                "required": ["role"],
                "properties": {
                    "role": {
                        "description": "Name of the role, `adapter:<name>`.",
                        "type": "string",
                        "pattern": "^adapter:.+$",
                        "examples": ["adapter:teacher"],
                    }
                },
            },
        }
    ]

    role: str = option(
        "The role that the prediction is kept near: `reference` (the adapter off), `ema` (the averaged weights), `old` "
        "(a lagged copy), or `adapter:<name>`.",
        default="reference",
        pattern="^(reference|ema|old|adapter:.+)$",
        examples=["reference", "ema", "old", "adapter:teacher"],
    )
    weight: float = option(
        "Weight of the mean squared distance; 0 costs nothing.", default=0.0, minimum=0, maximum=1_000_000
    )
    least_weight: float | None = option(
        "Weight at the worst of scored samples, where `weight` is that at the best; between them it follows how good "
        "a sample is. `null` weighs all samples alike.",
        default=None,
        minimum=0,
        maximum=1_000_000,
    )
    guidance_scale: float = option(
        "Guidance of the prediction that the policy is kept near, by an empty prompt; 1 is none and costs nothing.",
        default=1.0,
        minimum=0,
        maximum=1000,
    )
    adapter: str | None = option(
        "File, folder or Hub id of a frozen adapter that plays the role, which is then `adapter:<name>`. `null`: "
        "something else in the run gives the role.",
        default=None,
        format="path",
        minLength=1,
    )

    def declares(self) -> Mapping[str, Any]:
        if not self.weight:
            return {}
        own = self.adapter is not None
        return {
            "needs": {
                "role:reference" if own else f"role:{self.role}",
                *(["goodness"] if self.least_weight is not None else []),
            },
            "gives": {f"penalty:anchor_{self.role}", *([f"role:{self.role}"] if own else [])},
            "passes": ((EVERY_VIEW, POLICY), (EVERY_VIEW, self.role)),
            "queries": int(self.guidance_scale != 1),
            "excludes": {"rollout": _GUIDED, "view:rejected": _PAIRED} if self.guidance_scale != 1 else {},
        }

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.least_weight is not None and 0 < self.weight < self.least_weight:
            yield (
                "least_weight",
                f"{self.least_weight} at the worst samples is above `weight`, {self.weight} at the best; lower it, or "
                "raise `weight`",
            )

    def unprompted(self) -> bool:
        return bool(self.weight) and self.guidance_scale != 1
