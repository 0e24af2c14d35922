"""Check what no schema can about blocks: how their data sets are sampled, and their captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from flowhooks.data.blocks import TRAINED, Block, Datasets
from flowhooks.data.caption_augmentation import template_fault, templates_of
from flowhooks.data.sound import sound_faults
from flowhooks.documents.document import json_path
from flowhooks.documents.schemas import schemas
from flowhooks.errors import Problem

#: These keys concern training samples, so they have no meaning in a conditioning set.
_OF_IMAGES = (
    "caption_template",
    "caption_lines",
    "caption_shuffle",
    "keep_tags",
    "caption_dropout",
    "probability",
    "start_step",
    "end_step",
    "pair_names",
    "repeats_from_folder_names",
    "ties",
    "pairs",
    "min_gap",
    "records",
    "reference_column",
    "text_columns",
    "reference",
    "missing_reference",
    "reference_dropout",
    "reference_resolution",
)


def drawing_problems(blocks: Sequence[Block], file: str, root: str) -> Iterator[Problem]:
    """Yield the problems within each complete and schema-valid block."""
    for i, block in enumerate(blocks):
        faults = _of_conditioning(block) if block["dataset_type"] == "conditioning" else _of_images(block)
        for place, message in faults:
            yield Problem(message, file, json_path([i, *place], root))
        for key, message in sound_faults(block):
            yield Problem(message, file, json_path([i, key], root))


def idle_steps(data: Datasets, last: int) -> Iterator[Problem]:
    """Yield a problem for each range of steps before `last` in which no data set is drawn."""
    sets = [(i, b) for i, b in enumerate(data.blocks) if b["dataset_type"] in TRAINED and not b["disabled"]]
    step = 0
    while sets and step < last:
        begun = [block["end_step"] for _, block in sets if block["start_step"] <= step]
        ends = [end for end in begun if end is None or end > step]
        if None in ends:
            return
        if ends:
            step = max(ends)
            continue
        starts = [(block["start_step"], i) for i, block in sets if block["start_step"] > step]
        following, starting = min(starts, default=(last, 0))
        ended = [i for i, block in sets if block["end_step"] == step]
        where = f"{data.paths[ended[0]]}.end_step" if ended else f"{data.paths[starting]}.start_step"
        message = f"no data set is drawn from step {step:,} to {min(following, last):,}; let one be drawn there"
        yield Problem(message, str(data.source), where)
        step = following


def _of_conditioning(block: Block) -> Iterator[tuple[tuple[Any, ...], str]]:
    properties = schemas()["dataloader"]["$defs"]["dataset"]["properties"]
    for key in _OF_IMAGES:
        if block[key] != properties[key]["default"]:
            yield (key,), "belongs to an image set, whose samples a conditioning set follows; remove it here"


def _of_images(block: Block) -> Iterator[tuple[tuple[Any, ...], str]]:
    alone = isinstance(block["caption_template"], str)
    for k, template in enumerate(templates_of(block)):
        if fault := template_fault(template):
            yield ("caption_template", *(() if alone else (k,))), fault
    if block["keep_tags"] and not block["caption_shuffle"]:
        yield ("keep_tags",), "has no effect without `caption_shuffle`; set that to true, or remove `keep_tags`"
    if block["end_step"] is not None and block["end_step"] <= block["start_step"]:
        message = f"{block['end_step']} is not after `start_step` {block['start_step']}, so the set is never drawn"
        yield ("end_step",), f"{message}; raise it, or set `disabled` to true"
