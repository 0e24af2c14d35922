"""An average of the trained weights: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec


class WeightAverageSpec(HookSpec, type="weight_average", title="Weight average"):
    """Keeps an exponential moving average of what is trained, for validation, for what a run writes, and for hooks that
    use it. `training.use_ema` adds it with `training.ema_decay`."""

    gives = {"role:ema"}
    law = {"decay": 0.5}

    decay: float = option(
        "Share of the average that stays at an update; it rises to this over the first updates. 0.9999 for whole "
        "networks, 0.999 for adapters are usual.",
        minimum=0,
        exclusiveMaximum=1,
    )
