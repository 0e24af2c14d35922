"""An anchor to another role: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import EVERY_VIEW, POLICY


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
        "The role that the prediction is kept near: `reference` (the adapter off), `ema` (the averaged weights), or "
        "`adapter:<name>`.",
        default="reference",
        pattern="^(reference|ema|adapter:.+)$",
        examples=["reference", "ema", "adapter:teacher"],
    )
    weight: float = option(
        "Weight of the mean squared distance; 0 costs nothing.", default=0.0, minimum=0, maximum=1_000_000
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
            "needs": {"role:reference" if own else f"role:{self.role}"},
            "gives": {f"penalty:anchor_{self.role}", *([f"role:{self.role}"] if own else [])},
            "passes": ((EVERY_VIEW, POLICY), (EVERY_VIEW, self.role)),
        }
