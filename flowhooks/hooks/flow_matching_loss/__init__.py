"""The ordinary loss beside another method: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import POLICY


class FlowMatchingLossSpec(HookSpec, type="flow_matching_loss", title="Flow-matching loss"):
    """Adds the ordinary flow-matching loss of the data's images to the loss of another method."""

    slots = {"data", "penalty"}
    page = "compose.md"
    words = {"needs": "`data:image`, `data:mask` (with `masked`), `sigma`, or `drawn` (with `prediction: data`)"}

    weight: float = option("Weight of the loss in the total.", default=1.0, exclusiveMinimum=0, maximum=1_000_000)
    prediction: Literal["main", "own", "data"] = option(
        "The prediction that is scored. `main`: the one that is made anyway. `own`: one more forward, at one noise "
        "level for the whole sample. `data`: a chunk of its own, in a run that generates its samples.",
        default="main",
    )
    masked: bool = option("Train only where the mask of the data is white.", default=False)
    mask_dilate: int = option(
        "Cells of the latent grid by which the mask grows on every side.", default=0, minimum=0, maximum=100_000
    )

    def declares(self) -> Mapping[str, Any]:
        needs = {"data:image"} | ({"data:mask"} if self.masked else set())
        if self.prediction == "data":
            return {"needs": {*needs, "drawn"}, "queries": 1}
        drawn = {"drawn": "it reads a prediction on the data; beside {other} set its `prediction` to 'data'"}
        if self.prediction == "own":
            return {"needs": {*needs, "sigma"}, "wants": {"r_sigma"}, "queries": 1, "excludes": drawn}
        times = "beside {other} the prediction on `main` is not made at one noise level; set its `prediction` to 'own'"
        return {
            "needs": {*needs, "sigma"},
            "passes": (("main", POLICY),),
            "excludes": {**drawn, "r_sigma": times, "token_sigma": times},
        }
