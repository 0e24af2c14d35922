"""Assign the columns of a table, or the fields of an archive, to their roles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from flowhooks.data.blocks import (
    GROUP,
    KEEP,
    ORDER,
    PREFERENCE,
    ROLES,
    SCORE,
    TRAINED,
    record_columns,
    reference_columns,
)
from flowhooks.data.findings import Findings
from flowhooks.json_faults import json_path

#: Usual names, tried in this order where a block does not name the column.
IMAGE = ("file_name", "image", "image_path", "audio", "audio_path", "path", "filename", "img")
CAPTION = ("caption", "text", "prompt")
_REJECTED = re.compile(r"^(rejected|rejected_(image|path)|rejected(_\w+)?_file_name)$")
_MASK = re.compile(r"^((mask|segmentation)(_image|_path)?|(\w+_)?(mask|segmentation)(_\w+)?_file_name)$")
_FILES = "_file_name"
_KEYS = {role: f"{role}_column" for role in ROLES}
# Words at least this similar are taken as a misspelt role: `capton` is one, `task` is not (`mask`).
_SLIP = 0.8


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Holds the columns of a data set that are used.

    Args:
        image: the images of the set.
        caption: the prompts, where they come from a column.
        rejected: rejected sides; each makes a pair.
        masks: masks; they multiply.
        references: (pipeline argument or None, column) of each column of references.
        records: name under which hooks read a cell -> column.
        preference: the columns that say which of the image and the rejected side was preferred, where either may be.
        ranking: the columns by which images of different rows are compared.
    """

    image: str
    caption: str | None = None
    rejected: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    references: tuple[tuple[str | None, str], ...] = ()
    records: Mapping[str, str] = field(default_factory=dict)
    preference: tuple[str, ...] = ()
    ranking: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[str, ...]:
        return self.image, *self.rejected, *self.masks, *(column for _, column in self.references)

    @property
    def values(self) -> tuple[str, ...]:
        """Return the columns whose cells are values, not images or captions."""
        return *self.records.values(), *self.preference, *self.ranking

    @property
    def all(self) -> tuple[str, ...]:
        captions = (self.caption,) if self.caption else ()
        return tuple(dict.fromkeys((*self.pictures, *captions, *self.values)))


def usual_partners(available: Sequence[str]) -> dict[str, list[str]]:
    """Return `rejected_column` and `mask_column` of a block that names none, by the usual names of columns."""
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
    texts: Sequence[str] | None = None,
) -> Columns | None:
    """Return the columns that `block` names, else those with the usual names; None if one is missing, which is a
    problem.

    Args:
        available: the columns that exist.
        texts: the columns that captions and records may come from, if they are not the same.
    """
    texts = available if texts is None else texts
    problems_before = len(found.problems)
    image = _one("image_column", block, path, available, IMAGE, found)
    caption = None
    if block["dataset_type"] in TRAINED and block["caption_strategy"] == "column":
        caption = _one("caption_column", block, path, texts, CAPTION, found)
    chosen: dict[str, tuple[str, ...]] = {}
    for key in ("rejected_column", "mask_column"):
        named = block[key] or ()
        chosen[key] = (named,) if isinstance(named, str) else tuple(named)
        for name in chosen[key]:
            if name not in available:
                found.problem(place_of(block, path, key), _unknown(name, available))
    references = reference_columns(block)
    for _, column in references:
        if column not in available:
            found.problem(place_of(block, path, "reference_column"), _unknown(column, available))
    records = record_columns(block)
    for name, column in records.items():
        if column not in texts:
            found.problem(cell_place(block, path, name), _unknown(column, texts))
    preference = tuple(_as_list((block["columns"] or {}).get(PREFERENCE, [])))
    for column in preference:
        if column not in texts:
            found.problem(json_path(["columns", PREFERENCE], path), _unknown(column, texts))
    ranking = {name: (block["columns"] or {}).get(name) for name in (SCORE, ORDER, GROUP) if block["pairs"]}
    for name, ranked in ranking.items():
        if ranked is not None and ranked not in texts:
            found.problem(json_path(["columns", name], path), _unknown(ranked, texts))
    if image is None or len(found.problems) > problems_before:
        return None
    columns = Columns(
        image=image,
        caption=caption,
        rejected=chosen["rejected_column"],
        masks=chosen["mask_column"],
        references=references,
        records=records,
        preference=preference,
        ranking=tuple(column for column in ranking.values() if column is not None),
    )
    if block["dataset_type"] in TRAINED:
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
        found.problem(place_of(block, path, key), f"is needed: no column is called {likely}; the columns are: {there}")
        return None
    if named not in available:
        found.problem(place_of(block, path, key), _unknown(named, available))
        return None
    return named


def take_columns(block: dict[str, Any], path: str, found: Findings) -> None:
    """Move the roles that `columns` names into their keys. An unknown role, or one stated twice, is a problem."""
    stated = _one_sided(block, path, found)
    for role, key in _KEYS.items():
        if role not in stated:
            continue
        if block[key] not in (None, stated[role], [stated[role]]):
            message = f"is {stated[role]!r}, and `{key}` is {block[key]!r}; state one of the two"
            found.problem(f"{path}.columns.{role}", message)
        elif block[key] is None:
            block[key] = stated[role]
    if block["pairs"] and block["rejected_column"] is None:
        block["rejected_column"] = []
    if block["ties"] == KEEP and PREFERENCE not in stated and block["dataset_type"] in TRAINED:
        message = (
            f"'{KEEP}' is for rows of two images with a `{PREFERENCE}` under `columns`, and there is none; remove it"
        )
        found.problem(f"{path}.ties", message)
    for name in sorted(record_columns(block).keys() & (block["records"] or {}).keys()):
        message = "is a column of the set too, under `columns`; state one of the two"
        found.problem(json_path(["records", name], path), message)
    for name, column in stated.items():
        if fault := _misstated(name, column, block["dataset_type"]):
            found.problem(json_path(["columns", name], path), fault)


def _one_sided(block: dict[str, Any], path: str, found: Findings) -> dict[str, Any]:
    """Return what `columns` states, two images with a preference as an image and a rejected side. What does not fit
    together is a problem."""
    stated = dict(block["columns"] or {})
    images, numbers = stated.get("image"), stated.get(PREFERENCE)
    if numbers is None or block["dataset_type"] == "conditioning":
        return stated
    where = json_path(["columns", PREFERENCE], path)
    if not isinstance(images, list) or len(images) != 2:
        message = 'says which of two images was preferred: name both under `image`, as {"image": ["jpg_0", "jpg_1"]}'
        found.problem(where, message)
    elif len(_as_list(numbers)) > 2:
        found.problem(where, f"names {len(numbers)} columns; name one for each of the two images")
    elif "rejected" in stated:
        found.problem(f"{path}.columns.rejected", f"is the side that `{PREFERENCE}` does not prefer; remove it")
    else:
        stated["image"], stated["rejected"] = images[0], [images[1]]
    return stated


def _as_list(named: str | list[str]) -> list[str]:
    return [named] if isinstance(named, str) else named


def place_of(block: dict[str, Any], path: str, key: str) -> str:
    """Return the JSON path of the block's value for `key`, which may be in `columns`."""
    role = key.removesuffix("_column")
    if role == "rejected" and PREFERENCE in (block["columns"] or {}):
        role = "image"
    elif role == "rejected" and block["pairs"]:
        return f"{path}.pairs"
    return f"{path}.columns.{role}" if role in (block["columns"] or {}) else f"{path}.{key}"


def _misstated(name: str, column: str | list[str], kind: str) -> str | None:
    """Say what is wrong with one entry of `columns`; None if nothing is."""
    if name not in ("rejected", "mask", "reference", PREFERENCE) and not isinstance(column, str):
        several = "only `rejected`, `mask` and `reference` may name several columns"
        if name == "image":
            several += f", or `image` two, with a column that says which was preferred as `{PREFERENCE}`"
        return f"is a list of {len(column)}, and {several}; name one"
    if name in ROLES or (name in (PREFERENCE, SCORE, ORDER, GROUP) and kind != "conditioning"):
        return None
    known = {**{role: role for role in ROLES}, **{key: role for role, key in _KEYS.items()}}
    close = get_close_matches(name.strip().lower(), known, n=1, cutoff=_SLIP)
    if close:
        return f"did you mean {known[close[0]]!r}? If not, give what hooks read another name than {name!r}"
    if kind == "conditioning":
        return "belongs to an image set, whose samples a conditioning set follows; name it there"
    return None


def cell_place(block: Mapping[str, Any], path: str, name: str) -> str:
    """Return the JSON path of the key that names the column of a cell: `$[1].text_columns.lyrics`."""
    return json_path(["text_columns" if name in (block["text_columns"] or {}) else "columns", name], path)


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
        if name not in columns.all and (name in partners or name.endswith(_FILES)) and name not in IMAGE
    ]
    if unused:
        noun, them = ("column", "it") if len(unused) == 1 else ("columns", "them")
        remedy = f"name {them} in `rejected_column` or `mask_column`"
        found.warnings.append(f"{block['id']}: nothing uses the {noun} {', '.join(unused)}; {remedy}")
