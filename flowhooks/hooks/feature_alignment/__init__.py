"""Alignment of features to a teacher's: options and declarations of the hook. The maths is in ``alignment``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import POLICY

FEATURES = (
    "features are compared at the noisy images of the data, and {other} trains on samples that the pipeline generates "
    "with its own guidance"
)
TWIN = "Self-Flow gives every token a time of its own, TwinFlow each sample one interval"

#: A block that must be named. Numbers below the option's own bounds are left to the option, which says so once.
_BLOCK = {"type": ["integer", "string"], "minimum": -1_000_000, "maximum": 1_000_000}
#: A weight that decays takes steps to do so.
DECAYING: Mapping[str, Any] = {
    "if": {"properties": {"scheduler": {"enum": ["linear", "cosine"]}}, "required": ["scheduler"]},
    "then": {
        "required": ["decay_steps"],
        "properties": {"decay_steps": {"type": "integer", "minimum": 1, "maximum": 1_000_000_000}},
    },
}


class FeatureAlignmentSpec(HookSpec, type="feature_alignment", title="Feature alignment"):
    """Pulls the features of an early block towards a teacher's: a deeper block, the frozen base, a vision model, or the
    averaged weights on a cleaner view."""

    slots = {"penalty", "metrics"}
    papers = ("yu2024representation", "hwang2025cross", "haghighi2025layersync")
    page = "alignment.md"
    words = {
        "needs": "`role:reference` (with `source: backbone`), `role:ema` and `token_sigma` (with `self_flow`)",
        "gives": "`alignment_loss`",
    }
    conditions = [
        {
            "if": {"minProperties": 2, "properties": {"source": {"enum": ["layersync", "backbone", "self_flow"]}}},
            "then": {
                "required": ["block_index", "teacher_block_index"],
                "properties": {
                    "block_index": _BLOCK,
                    "teacher_block_index": _BLOCK,
                },
            },
        },
        {
            "if": {"properties": {"source": {"enum": ["external", "crepa"]}}, "required": ["source"]},
            "then": {
                "required": ["block_index", "encoder"],
                "properties": {
                    "block_index": _BLOCK,
                    "encoder": {"type": "string"},
                },
            },
        },
        DECAYING,
    ]

    source: Literal["layersync", "backbone", "external", "crepa", "self_flow"] = option(
        "The teacher. `layersync`: a deeper block of the same pass. `backbone`: a block of the frozen base. "
        "`external`: a vision model on the clean image. `crepa`: the same on video, with neighbouring frames. "
        "`self_flow`: a block of the averaged weights, with all tokens at the lower of the two sigmas that "
        "`dual_times` gives.",
        default="layersync",
    )
    block_index: int | str | None = option(
        "The student's block: its number, counted from 0 in running order over all of the network's blocks, or its "
        "module name. Must be given.",
        default=None,
        minimum=0,
        maximum=1_000_000,
    )
    teacher_block_index: int | str | None = option(
        "The teacher's block, by number or module name. `layersync`, `backbone` and `self_flow` need it.",
        default=None,
        minimum=0,
        maximum=1_000_000,
    )
    encoder: str | None = option(
        "Folder or Hub id of the vision model, which transformers loads, safetensors only. `external` and `crepa` "
        "need it.",
        default=None,
        format="path",
        minLength=1,
    )
    weight: float = option(
        "Weight of the loss; 0 switches the hook off. LayerSync uses 0.2, REPA 0.5.",
        default=0.5,
        minimum=0,
        maximum=1_000_000,
    )
    scheduler: Literal["constant", "linear", "cosine"] = option(
        "Course of the weight. `constant` keeps it; `linear` and `cosine` bring it to `weight_end` in `decay_steps`.",
        default="constant",
    )
    warmup_steps: int = option(
        "Micro-steps in which the weight rises from 0.", default=0, minimum=0, maximum=1_000_000_000
    )
    decay_steps: int = option(
        "Micro-steps in which the weight decays, counted from the end of the warm-up. `linear` and `cosine` need it.",
        default=0,
        minimum=0,
        maximum=1_000_000_000,
    )
    weight_end: float = option("Weight after the decay.", default=0.0, minimum=0, maximum=1_000_000)
    cutoff_step: int = option(
        "Micro-step from which on the weight is 0; 0 means never.", default=0, minimum=0, maximum=1_000_000_000
    )
    similarity_threshold: float | None = option(
        "The alignment ends for good once the running mean of the cosine has reached this value; `null` means never.",
        default=None,
        exclusiveMinimum=0,
        maximum=1,
    )
    similarity_ema_decay: float = option(
        "Decay of the running mean behind `similarity_threshold`.", default=0.99, minimum=0, exclusiveMaximum=1
    )
    projector_depth: int | None = option(
        "Linear layers of the projector; 0 uses no projector. `null` takes 0 for `layersync`, else 3.",
        default=None,
        minimum=0,
        maximum=64,
    )
    projector_width: int = option("Width between the projector's layers.", default=2048, minimum=1, maximum=65_536)
    adjacent_distance: int = option(
        "`crepa` only: how many frames away a neighbour may be.", default=1, minimum=0, maximum=1_000_000
    )
    adjacent_tau: float = option(
        "`crepa` only: a frame k frames away has the weight `exp(-k / adjacent_tau)`.",
        default=1.0,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )

    def declares(self) -> Mapping[str, Any]:
        if not self.weight:
            return {}
        on_base, on_average = self.source == "backbone", self.source == "self_flow"
        return {
            "needs": {"role:reference"} if on_base else {"role:ema", "token_sigma"} if on_average else set(),
            "gives": {"alignment_loss"},
            "passes": (("main", POLICY), *([("main", "reference")] if on_base else [])),
            "queries": int(on_average),
            "excludes": {"rollout": FEATURES, **({"twin_flow": TWIN, "twin_flow_target": TWIN} if on_average else {})},
        }
