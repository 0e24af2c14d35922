"""Hold the blocks of a data set file, and say which data they offer to hooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowhooks.documents.document import json_path
from flowhooks.reading import user_path

#: Types of the sets that are trained on; the others belong to these.
AUDIO = "audio"
TRAINED = ("image", AUDIO)
#: On the copies of blocks that are read: whether the files of a conditioning set are sound too.
SOUNDING = "sounding"
MASK_TYPES = ("mask", "segmentation")
REJECTED_TYPES = ("reference_strict", "reference_loose")
REFERENCE_TYPE = "reference_image"
#: Values of `reference`, `missing_reference` and `reference_resolution`.
FIRST_FRAME, NO_REFERENCE, TARGET = "first_frame", "none", "target"
#: Names in `columns` that also have a key of their own; every other name is chosen by the user.
ROLES = ("image", "caption", "rejected", "mask", "reference")
#: Name in `columns` of the numbers that say which of two images was preferred.
PREFERENCE = "preference"
#: Names in `columns` that `pairs` reads: the number of an image, as a score or as a place, and what it is compared in.
SCORE, ORDER, GROUP = "score", "order", "group"
#: Value of `ties` that keeps them.
KEEP = "keep"
Block = dict[str, Any]


def holds_sound(block: Mapping[str, Any]) -> bool:
    """Return whether the files of a set are sound: those of an audio set, and of rejected sides that belong to one."""
    return block["dataset_type"] == AUDIO or bool(block.get(SOUNDING))


def record_columns(block: Block) -> dict[str, str]:
    """Return name -> column, for the cells that hooks read under names chosen by the user."""
    taken = (*ROLES, PREFERENCE, *((SCORE, ORDER, GROUP) if block["pairs"] else ()))
    named = {name: column for name, column in (block["columns"] or {}).items() if name not in taken}
    return {**named, **(block["text_columns"] or {})}


def record_names(block: Block) -> set[str]:
    """Return every name under which hooks read something of each sample of an image set."""
    return {*record_columns(block), *(block["records"] or ())}


def keeps_ties(blocks: Iterable[Block]) -> bool:
    """Return whether an enabled set keeps ties: then every sample of the run says under :data:`PREFERENCE` what share
    of the votes its image has, 1 or, for a tie, 0.5."""
    return any(block["ties"] == KEEP and not block["disabled"] for block in blocks)


def reference_columns(block: Block) -> tuple[tuple[str | None, str], ...]:
    """Return (pipeline argument, column) of every column of references, in order; the argument is None where the
    pipeline's only one is meant."""
    named = block["reference_column"] or ()
    by_argument = named if isinstance(named, dict) else {block["reference_argument"]: named}
    listed = ((argument, [each] if isinstance(each, str) else each) for argument, each in by_argument.items())
    return tuple((argument, column) for argument, columns in listed for column in columns)


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """Holds validated data set blocks.

    Args:
        source: the file the blocks came from; ``instance_data_dir`` is relative to its folder.
        blocks: one dict per data set, complete, in order, disabled ones included. An enabled image block's
            ``conditioning_data`` lists every set that applies to it, whichever side stated the link; its
            ``rejected_column`` and ``mask_column`` list the columns of its own that do.
        root: JSON path of the list of blocks in ``source``.
        links: index of each enabled image block -> indices of the sets that belong to it, in order.
    """

    source: Path
    blocks: tuple[Block, ...]
    root: str = "$"
    links: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the JSON path of each block in ``source``."""
        return tuple(json_path([i], self.root) for i in range(len(self.blocks)))

    @property
    def instance_prompts(self) -> tuple[str, ...]:
        """Return the prompts of enabled sets that use one prompt for all images."""
        return tuple(
            block["instance_prompt"].strip()
            for block in self.blocks
            if not block["disabled"]
            and block.get("caption_strategy") == "instanceprompt"
            and (block.get("instance_prompt") or "").strip()
        )

    @property
    def provides(self) -> frozenset[str]:
        """Return ``data:image``; ``data:rejected``, ``data:mask`` and ``data:reference`` where an enabled, linked set
        has them; ``data:<name>`` for every name that all enabled image sets have under ``columns`` or ``records``."""
        images = [b for b in self.blocks if b["dataset_type"] in TRAINED and not b["disabled"]]
        ids, listed = {b["id"] for b in images}, {name for b in images for name in b["conditioning_data"] or ()}
        kinds = {
            b["conditioning_type"]
            for b in self.blocks
            if b["dataset_type"] == "conditioning"
            and not b["disabled"]
            and (b["id"] in listed or b["source_dataset_id"] in ids)
        }
        given = {"data:image"}
        own = any(b["rejected_column"] or b["pair_names"] or b["pairs"] for b in images)
        if own or kinds.intersection(REJECTED_TYPES):
            given.add("data:rejected")
        if kinds.intersection(MASK_TYPES) or any(b["mask_column"] for b in images):
            given.add("data:mask")
        if REFERENCE_TYPE in kinds or any(b["reference_column"] or b["reference"] or b["text_columns"] for b in images):
            given.add("data:reference")
        if images:
            named = set.intersection(*map(record_names, images)) | ({PREFERENCE} if keeps_ties(images) else set())
            given |= {f"data:{name}" for name in named}
        return frozenset(given)

    @property
    def arguments(self) -> tuple[str | None, ...]:
        """Return the pipeline arguments of all references of enabled sets, each once; None for the only one."""
        named: dict[str | None, None] = {}
        for i, linked in self.links.items():
            block = self.blocks[i]
            if block["reference"] == FIRST_FRAME:
                named[block["reference_argument"]] = None
            named |= dict.fromkeys(
                self.blocks[j]["reference_argument"]
                for j in linked
                if self.blocks[j]["conditioning_type"] == REFERENCE_TYPE
            )
            named |= dict.fromkeys(argument for argument, _ in reference_columns(block))
            named |= dict.fromkeys(block["text_columns"] or ())
        return tuple(named)

    @property
    def unread(self) -> bool:
        """Return whether the columns of an image set could not be read, so that it may offer more than ``provides``
        says."""
        return any(
            b["type"] != "local" and b["dataset_type"] in TRAINED and None in (b["rejected_column"], b["mask_column"])
            for b in self.blocks
            if not b["disabled"]
        )

    def document(self) -> dict[str, Any]:
        """Return the blocks as JSON that can be read back from any folder."""
        return {"datasets": [{**block, "instance_data_dir": self._anywhere(block)} for block in self.blocks]}

    def _anywhere(self, block: Block) -> str:
        named = block["instance_data_dir"]
        if named.startswith("digits:") or "://" in named:
            return named
        place = self.source.parent / user_path(named)
        if block["type"] == "huggingface" and not place.exists():
            return named
        return str(place.resolve())
