"""The documented top-level keys of feature alignment, ``crepa_*``, and ``use_ema``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flowhooks.documents.validation import problems_in
from flowhooks.errors import Problem

ENABLED, SOURCE, BACKBONE, RATIO = (
    "crepa_enabled",
    "crepa_feature_source",
    "crepa_use_backbone_features",
    "crepa_self_flow_mask_ratio",
)
USE_EMA = "use_ema"
#: Key -> option of ``feature_alignment``.
OPTIONS: Mapping[str, str] = {
    "crepa_block_index": "block_index",
    "crepa_teacher_block_index": "teacher_block_index",
    "crepa_lambda": "weight",
    "crepa_scheduler": "scheduler",
    "crepa_warmup_steps": "warmup_steps",
    "crepa_decay_steps": "decay_steps",
    "crepa_lambda_end": "weight_end",
    "crepa_cutoff_step": "cutoff_step",
}
KEYS = (USE_EMA, ENABLED, SOURCE, BACKBONE, RATIO, *OPTIONS)
SELF_FLOW = "self_flow"


def apply_use_ema_alias(document: dict[str, Any], written: Mapping[str, Any], file: str) -> list[Problem]:
    """Carry ``use_ema`` into the training section of a complete document; ``written`` is what the user wrote."""
    wanted = document[USE_EMA]
    if wanted is None:
        return []
    own = (written.get("training") or {}).get(USE_EMA)
    if own not in (None, wanted):
        message = f"is {str(wanted).lower()}, and `training.use_ema` is {str(own).lower()}; remove one of the two"
        return [Problem(message, file, f"$.{USE_EMA}")]
    document["training"][USE_EMA] = wanted
    return []


def crepa_blocks(document: Mapping[str, Any], file: str) -> tuple[list[tuple[str, dict[str, Any]]], list[Problem]]:
    """Return hook blocks, each with the JSON path of the key it comes from, and what is wrong with the keys."""
    given = {key: document[key] for key in (SOURCE, BACKBONE, RATIO, *OPTIONS) if document[key] is not None}
    if not document[ENABLED]:
        message = f'has no effect without "{ENABLED}": true; add that, or remove this key'
        return [], [Problem(message, file, f"$.{key}") for key in given]
    source, problems = _source(document, file)
    if source is None:
        return [], problems
    if RATIO in given and source != SELF_FLOW:
        problems.append(Problem(f"is of the source 'self_flow', not of {source!r}; remove it", file, f"$.{RATIO}"))
    options = {option: given[key] for key, option in OPTIONS.items() if key in given}
    block = {"type": "feature_alignment", "source": source, **options}
    problems += (Problem(p.message, p.file, _renamed(p.path)) for p in problems_in(block, "hook", file=file))
    blocks = [(f"$.{ENABLED}", block)]
    if source == SELF_FLOW:
        blocks.append((f"$.{SOURCE}", {"type": "dual_times", "mask_ratio": document[RATIO]}))
    return blocks, problems


def _source(document: Mapping[str, Any], file: str) -> tuple[str | None, list[Problem]]:
    source = document[SOURCE]
    if not document[BACKBONE]:
        message = f"is missing; {ENABLED!r} needs to know the teacher, such as 'self_flow'"
        return source, [] if source else [Problem(message, file, f"$.{SOURCE}")]
    if source in (None, "backbone"):
        return "backbone", []
    message = f"takes the frozen base as the teacher, and `{SOURCE}` is {source!r}; remove one of the two"
    return None, [Problem(message, file, f"$.{BACKBONE}")]


def _renamed(path: str | None) -> str:
    """The JSON path of an option as its key."""
    keys = {option: key for key, option in OPTIONS.items()}
    return re.sub(r"^\$\.(\w+)", lambda found: f"$.{keys.get(found[1], found[1])}", path or "$")
