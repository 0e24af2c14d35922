"""Data set files: their two forms, and whether their links make sense. The audit looks at the files on disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowhooks.config.document import json_path, read_json, without_remarks
from flowhooks.config.drawing import drawing_problems
from flowhooks.config.elsewhere import translate
from flowhooks.config.secrets import take_out
from flowhooks.config.validation import problems_in, with_defaults
from flowhooks.errors import DataError, FlowhooksWarning, Problem
from flowhooks.reading import user_path

MASK_TYPES = ("mask", "segmentation")
REJECTED_TYPES = ("reference_strict", "reference_loose")
Block = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Datasets:
    """Validated data set blocks.

    Args:
        source: the file the blocks came from; ``instance_data_dir`` is relative to its folder.
        blocks: one dict per data set, complete, in order, disabled ones included. An enabled image block's
            ``conditioning_data`` lists every set that applies to it, whichever side stated the link; its
            ``rejected_column`` and ``mask_column`` list the columns of its own that do.
        root: JSON path of the list of blocks in ``source``.
    """

    source: Path
    blocks: tuple[Block, ...]
    root: str = "$"

    @property
    def paths(self) -> tuple[str, ...]:
        """JSON path of each block in ``source``."""
        return tuple(json_path([i], self.root) for i in range(len(self.blocks)))

    @property
    def instance_prompts(self) -> tuple[str, ...]:
        """The prompts of enabled sets whose every image has the same one."""
        return tuple(
            block["instance_prompt"].strip()
            for block in self.blocks
            if not block["disabled"]
            and block.get("caption_strategy") == "instanceprompt"
            and (block.get("instance_prompt") or "").strip()
        )

    @property
    def provides(self) -> frozenset[str]:
        """``data:image``, and ``data:rejected`` and ``data:mask`` where an enabled, linked set gives them."""
        images = [b for b in self.blocks if b["dataset_type"] == "image" and not b["disabled"]]
        ids, listed = {b["id"] for b in images}, {name for b in images for name in b["conditioning_data"] or ()}
        kinds = {
            b["conditioning_type"]
            for b in self.blocks
            if b["dataset_type"] == "conditioning"
            and not b["disabled"]
            and (b["id"] in listed or b["source_dataset_id"] in ids)
        }
        given = {"data:image"}
        if kinds.intersection(REJECTED_TYPES) or any(b["rejected_column"] for b in images):
            given.add("data:rejected")
        if kinds.intersection(MASK_TYPES) or any(b["mask_column"] for b in images):
            given.add("data:mask")
        return frozenset(given)

    @property
    def unread(self) -> bool:
        """Whether the columns of an image set could not be read, so that it may give more than ``provides`` says."""
        return any(
            b["type"] != "local" and b["dataset_type"] == "image" and None in (b["rejected_column"], b["mask_column"])
            for b in self.blocks
            if not b["disabled"]
        )

    def document(self) -> dict[str, Any]:
        """The blocks as JSON that can be read back from any folder."""
        return {"datasets": [{**block, "instance_data_dir": self._anywhere(block)} for block in self.blocks]}

    def _anywhere(self, block: Block) -> str:
        named = block["instance_data_dir"]
        if named.startswith("digits:") or "://" in named:
            return named
        place = self.source.parent / user_path(named)
        if block["type"] == "huggingface" and not place.exists():
            return named
        return str(place.resolve())


def load_datasets(given: str | Path | list[Any] | dict[str, Any], base: Path, *, root: str = "$") -> Datasets:
    """Read, validate, complete and link data sets.

    Args:
        given: a file, or what would stand in one.
        base: the file or folder that a file name is relative to; for blocks, where they are from.
        root: JSON path of given blocks in ``base``.

    Raises:
        DataError: with every problem found.
        ConfigError: the file is missing or no JSON.
    """
    folder = base if base.is_dir() else base.parent
    if isinstance(given, (str, Path)):
        source = _tidy(folder / user_path(given))
        given, root = read_json(source), "$"
    else:
        source = base / "<inline>" if base.is_dir() else base
    cleaned, problems = take_out(without_remarks(given), str(source), root)
    read = translate(cleaned, str(source), root)
    cleaned = read.document
    problems += read.problems
    problems += problems_in(cleaned, "dataloader", file=str(source), root=root)
    if problems:
        raise DataError(problems)
    if read.warning is not None:
        warnings.warn(f"{source}: {read.warning}", FlowhooksWarning, stacklevel=2)
    complete = with_defaults(cleaned, "dataloader")
    if isinstance(complete, dict):
        complete, root = complete["datasets"], f"{root}.datasets"
    return _linked(tuple(complete), source, root)


def is_datasets(document: Any) -> bool:
    """Whether what a file holds is data sets, in either of their two forms, and no run."""
    return not isinstance(document, dict) or "datasets" in document


def read_datasets(path: str | Path) -> Datasets | None:
    """The data sets of a data set file; None for any other JSON file.

    Raises:
        DataError: with every problem found.
        ConfigError: the file is missing or no JSON.
    """
    return load_datasets(path, Path()) if is_datasets(read_json(Path(path))) else None


def _tidy(path: Path) -> Path:
    """Without ``..`` where that leads to the same file, which it need not do beside symbolic links."""
    plain = Path(os.path.normpath(path))
    return plain if path.exists() and plain.exists() and plain.samefile(path) else path


def _linked(blocks: tuple[Block, ...], source: Path, root: str) -> Datasets:
    # Imported here: the room of data imports this module for its types.
    from flowhooks.data.findings import Findings
    from flowhooks.data.links import link
    from flowhooks.data.sources import complete_block

    found = Findings(source, root=root)
    for i, block in enumerate(blocks):
        complete_block(block, found.at(i), found)
    links = link(blocks, found)
    problems = _circles(blocks, str(source), root)
    # A circle also shows as links to the wrong kind of set; that it is a circle is the cause.
    told = {problem.path for problem in problems}
    problems += (problem for problem in found.problems if problem.path not in told)
    problems += drawing_problems(blocks, str(source), root)
    if problems:
        raise DataError(problems)
    for i, partners in links.items():
        blocks[i]["conditioning_data"] = [blocks[j]["id"] for j in partners]
    return Datasets(source=source, blocks=blocks, root=root)


def _circles(blocks: Sequence[Block], file: str, root: str) -> list[Problem]:
    """Sets whose ``source_dataset_id`` leads back to themselves."""
    source_of = {block["id"]: block["source_dataset_id"] for block in blocks}
    problems = []
    for i, block in enumerate(blocks):
        trail = [block["id"]]
        while (source := source_of.get(trail[-1])) is not None and source not in trail:
            trail.append(source)
        if source == block["id"]:
            chain = " -> ".join(repr(name) for name in [*trail, source])
            message = f"the links go in a circle: {chain}; a conditioning set belongs to an image set"
            problems.append(Problem(message, file, f"{json_path([i], root)}.source_dataset_id"))
    return problems
