"""Learns from thumbs up and down: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import POLICY


class KTOSpec(HookSpec, type="kto", title="KTO"):
    """Learns from images that were liked or disliked one by one, with the adapter-free model as reference."""

    slots = {"objective", "metrics"}
    needs = {"data:label", "role:reference"}
    excludes = {"rollout": "labels come from the data, and {other} trains on samples that it generates"}
    passes = (("main", POLICY), ("main", "reference"))
    law = {"beta": 20.0}

    beta: float = option(
        "Strength of the preference, of a mean over latent elements.", default=1000.0, exclusiveMinimum=0, maximum=1e9
    )
    liked_weight: float = option("Weight of liked images.", default=1.0, minimum=0, maximum=1_000_000)
    disliked_weight: float = option("Weight of disliked images.", default=1.0, minimum=0, maximum=1_000_000)
