"""What is trained, as it was: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec


class LaggedCopySpec(HookSpec, type="lagged_copy", title="Lagged copy"):
    """Keeps a copy of what is trained that lags behind: the role `old`, which starts as the policy. Added with these
    defaults where a hook needs `role:old`."""

    gives = {"role:old"}
    implied_by = ("role:old",)
    law = {"every": 2, "growth": 0.2}
    page = "diffusion_nft.md"

    role: Literal["old", "sampler"] = option(
        "The role that the copy plays. A run may have one copy for each.", default="old"
    )
    every: int = option("Optimiser steps between two updates of the copy.", default=1, minimum=1, maximum=1_000_000_000)
    growth: float = option(
        "At an update after n optimiser steps, the copy keeps the share `least + growth * (n - start)` of itself, at "
        "most `most`, and takes the rest from the policy. A share of 0 copies the policy.",
        default=0.001,
        minimum=0,
        maximum=1,
    )
    start: int = option("Optimiser steps before the share grows.", default=0, minimum=0, maximum=1_000_000_000)
    least: float = option(
        "Share that the copy keeps of itself before it grows.", default=0.0, minimum=0, exclusiveMaximum=1
    )
    most: float = option("Largest share that the copy keeps of itself.", default=0.5, minimum=0, exclusiveMaximum=1)

    def declares(self) -> Mapping[str, Any]:
        return {"gives": {f"role:{self.role}"}}

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.least > self.most:
            yield "least", f"the copy would keep {self.least} of itself and at most {self.most}; raise `most`"
