"""Which columns of a table, or fields of an archive, hold what."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowhooks.data.findings import Findings

#: Looked for in this order where a block does not name the column.
IMAGE = ("file_name", "image", "image_path", "path", "filename", "img")
CAPTION = ("caption", "text", "prompt")
_REJECTED = re.compile(r"^(rejected|rejected_(image|path)|rejected(_\w+)?_file_name)$")
_MASK = re.compile(r"^((mask|segmentation)(_image|_path)?|(\w+_)?(mask|segmentation)(_\w+)?_file_name)$")
_FILES = "_file_name"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a data set that are used.

    Args:
        image: the pictures of the set.
        caption: the prompts, where they come from a column.
        rejected: rejected sides; each gives a pair.
        masks: masks; they multiply.
    """

    image: str
    caption: str | None = None
    rejected: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[str, ...]:
        return self.image, *self.rejected, *self.masks

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.pictures, self.caption) if self.caption else self.pictures


def usual_partners(available: Sequence[str]) -> dict[str, list[str]]:
    """`rejected_column` and `mask_column` of a block that names none, by what columns are usually called."""
    return {
        "rejected_column": [name for name in available if _REJECTED.match(name)],
        "mask_column": [name for name in available if _MASK.match(name)],
    }


def choose(
    block: dict[str, Any],
    path: str,
    available: Sequence[str],
    found: Findings,
    *,
    captions: Sequence[str] | None = None,
) -> Columns | None:
    """The columns that `block` names, else those of the usual names; None if one is missing, which is a problem.

    Args:
        available: the columns that there are.
        captions: the columns that captions may come from, if they are not the same.
    """
    captions = available if captions is None else captions
    problems_before = len(found.problems)
    image = _one("image_column", block, path, available, IMAGE, found)
    caption = None
    if block["dataset_type"] == "image" and block["caption_strategy"] == "column":
        caption = _one("caption_column", block, path, captions, CAPTION, found)
    chosen: dict[str, tuple[str, ...]] = {}
    for key in ("rejected_column", "mask_column"):
        named = block[key] or ()
        chosen[key] = (named,) if isinstance(named, str) else tuple(named)
        for name in chosen[key]:
            if name not in available:
                found.problem(f"{path}.{key}", _unknown(name, available))
    if image is None or len(found.problems) > problems_before:
        return None
    columns = Columns(image=image, caption=caption, rejected=chosen["rejected_column"], masks=chosen["mask_column"])
    if block["dataset_type"] == "image":
        _warn_of_unused(block, columns, available, found)
    return columns


def _one(
    key: str, block: dict[str, Any], path: str, available: Sequence[str], usual: Sequence[str], found: Findings
) -> str | None:
    named = block[key]
    if named is None:
        for name in usual:
            if name in available:
                return name
        there = ", ".join(map(repr, available)) or "none"
        likely = ", ".join(map(repr, usual))
        found.problem(f"{path}.{key}", f"is needed: no column is called {likely}; the columns are: {there}")
        return None
    if named not in available:
        found.problem(f"{path}.{key}", _unknown(named, available))
        return None
    return named


def _unknown(name: str, available: Sequence[str]) -> str:
    # Imported here: the room of configurations imports this module to complete its blocks.
    from flowhooks.documents.suggest import hint

    there = ", ".join(map(repr, available)) or "none"
    return f"there is no column {name!r}{hint(name, available)}; the columns are: {there}"


def _warn_of_unused(block: dict[str, Any], columns: Columns, available: Sequence[str], found: Findings) -> None:
    usual = usual_partners(available)
    partners = [*usual["rejected_column"], *usual["mask_column"]]
    unused = [
        repr(name)
        for name in available
        if name not in columns.pictures and (name in partners or name.endswith(_FILES)) and name not in IMAGE
    ]
    if unused:
        noun, them = ("column", "it") if len(unused) == 1 else ("columns", "them")
        remedy = f"name {them} in `rejected_column` or `mask_column`"
        found.warnings.append(f"{block['id']}: nothing uses the {noun} {', '.join(unused)}; {remedy}")
