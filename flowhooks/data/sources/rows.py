"""Turn the rows of a table, or the samples of an archive, into a data set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowhooks.data.assets import Asset
from flowhooks.data.blocks import KEEP, PREFERENCE, REFERENCE_TYPE, TRAINED
from flowhooks.data.captions import WITHOUT_TEXT, Captions, captions_without_text
from flowhooks.data.files import is_text, medium_of
from flowhooks.data.findings import Findings
from flowhooks.data.inspection import Picture
from flowhooks.data.records import DataSet
from flowhooks.data.sources.columns import Columns, cell_place, place_of
from flowhooks.data.sources.inspecting import Fault, Inspector, note_copies
from flowhooks.data.sources.ranks import REJECTED, Ranks, ranking_of
from flowhooks.data.sources.sides import Sides, Votes
from flowhooks.json_faults import json_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Holds one sample of a source, before its images are inspected.

    Args:
        name: name in messages: `metadata.csv line 3`.
        key: path stem by which it is paired.
        pictures: column -> where its image is, None where the cell is empty.
        caption: content of the caption column; under `textfile`, the place of the text. None where there is none.
        cells: column -> its content, for the columns that records are made of; a Fault where it cannot be read.
    """

    name: str
    key: str
    pictures: Mapping[str, Asset | Fault | None]
    caption: Any = None
    cells: Mapping[str, Any] = field(default_factory=dict)


class Refusal(Exception):
    """A cell cannot be stored in a record; the message says why."""


def cell_value(value: Any) -> Any:
    """Return a cell as a record holds it: text, numbers, true and false, lists and objects of them; None for none.

    Bytes are read as UTF-8, and NaN becomes None. Raises Refusal for anything else.
    """
    match value:
        case Fault():
            raise Refusal(value.reason)
        case bytes():
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError:
                raise Refusal("holds bytes that are no UTF-8 text; name an image as image, rejected or mask") from None
        case str():
            if not is_text(value):
                raise Refusal("holds text that is not UTF-8")
            return value
        case float() if value != value:
            return None
        case float() if math.isinf(value):
            raise Refusal("holds an infinite number")
        case None | bool() | int() | float():
            return value
        case list() | tuple():
            return [cell_value(each) for each in value]
        case dict():
            return {name: cell_value(each) for name, each in value.items()}
    raise Refusal(f"holds a {type(value).__name__}; write it as text or as a number")


@dataclass
class _Records:
    """Collects what `columns` names of each sample, while the rows are read."""

    columns: Mapping[str, str]
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def take(self, stem: str, row: Row) -> None:
        own = self.found[stem] = dict[str, Any]()
        for name, column in self.columns.items():
            try:
                value = cell_value(row.cells.get(column))
                if isinstance(value, str) and not value.strip():
                    value = None
            except Refusal as reason:
                self.faults.setdefault(name, []).append(f"{row.name} {reason}")
                continue
            if value is None:
                self.missing.setdefault(name, []).append(row.name)
            else:
                own[name] = value

    def report(self, block: Mapping[str, Any], path: str, found: Findings) -> None:
        for name, column in self.columns.items():
            where = cell_place(block, path, name)
            what = f"rows with nothing in {column!r}"
            found.listing(where, self.missing.get(name, ()), what, "fill the cells, or take these rows out")
            found.listing(where, self.faults.get(name, ()), f"cells of {column!r} that cannot be used", "correct them")


@dataclass
class _Partners:
    """Collects the images of a further column, while the rows are read."""

    column: str
    key: str
    kind: str
    inspector: Inspector = field(default_factory=Inspector)
    argument: str | None = None
    images: dict[str, Picture] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)

    def take(self, stem: str, row: Row) -> None:
        cell = row.pictures.get(self.column)
        picture = None
        if cell is None:
            self.missing.append(row.name)
            if self.kind == REFERENCE_TYPE:
                return
        else:
            picture = self.inspector.look(cell, f"{row.name}, {self.column!r},")
        if picture is None:
            self.unusable.add(stem)
        else:
            self.images[stem] = picture

    def conclude(self, images: DataSet, found: Findings) -> DataSet:
        where = place_of(images.block, images.path, self.key)
        self.inspector.report(where, found)
        lacking = f"rows with nothing in {self.column!r}"
        if self.kind != REFERENCE_TYPE:
            found.listing(where, self.missing, lacking, "fill the cells, or take these rows out")
        about: dict[str, Any] = {
            "id": f"{images.id}.{self.column}",
            "dataset_type": "conditioning",
            "conditioning_type": self.kind,
        }
        if self.kind == REFERENCE_TYPE:
            about["reference_argument"] = self.argument
        return DataSet(
            block={**images.block, **about},
            path=images.path,
            images=self.images,
            unusable=frozenset(self.unusable),
            place=where.removeprefix(f"{images.path}."),
        )


def collect(
    block: dict[str, Any], path: str, columns: Columns, rows: Iterable[Row], found: Findings, *, about: str
) -> DataSet:
    """Inspect every image and caption of `rows`; problems go to `found`, each naming its row.

    Args:
        columns: the used columns and their roles.
        about: name of the table or archive in messages.
    """
    problems_before = len(found.problems)
    medium = medium_of(block)
    inspector, images, unusable = Inspector(medium), dict[str, Picture](), set[str]()
    partners = [_Partners(name, "rejected_column", "reference_strict", Inspector(medium)) for name in columns.rejected]
    partners += [_Partners(name, "mask_column", "mask") for name in columns.masks]
    partners += [
        _Partners(name, "reference_column", REFERENCE_TYPE, argument=argument) for argument, name in columns.references
    ]
    kept = {PREFERENCE: PREFERENCE} if block["ties"] == KEEP else {}
    captions, records = _captions(block, path), _Records({**columns.records, **kept})
    votes = ranks = None
    if columns.preference:
        sides = Sides(images=(columns.image, *columns.rejected), numbers=columns.preference)
        votes = Votes(sides, keep_ties=bool(kept))
        rows = votes.ordered(rows)
    elif (ranking := ranking_of(block)) is not None:
        ranks = Ranks(ranking, columns.image, block["id"], columns.values)
        partners.append(_Partners(REJECTED, "rejected_column", "reference_strict", inspector))
        rows = ranks.paired(rows, inspector)
    for row in rows:
        stem = _own(row.key, images, unusable)
        cell = row.pictures.get(columns.image)
        picture = inspector.look(cell or Fault(f"has nothing in {columns.image!r}"), row.name)
        for partner in partners:
            partner.take(stem, row)
        if picture is None:
            unusable.add(stem)
            continue
        images[stem] = picture
        if captions is not None:
            _take_caption(captions, block["caption_strategy"], stem, row)
        if records.columns:
            records.take(stem, row)
    inspector.report(f"{path}.instance_data_dir", found)
    if votes is not None:
        votes.report(json_path(["columns", PREFERENCE], path), block["id"], found)
    if ranks is not None:
        ranks.report(path, found)
    if not images and not unusable and len(found.problems) == problems_before:
        message = f"{about} holds no sample; add some, name another place, or set `disabled` to true"
        found.problem(f"{path}.instance_data_dir", message)
    if ranks is None:
        note_copies(block["id"], images, found)
    records.report(block, path, found)
    result = DataSet(
        block=block,
        path=path,
        images=images,
        captions=_concluded(captions, block, path, images, found),
        records=records.found,
        unusable=frozenset(unusable),
        usable=bool(images or unusable),
    )
    return replace(result, columns=tuple(partner.conclude(result, found) for partner in partners))


def _captions(block: dict[str, Any], path: str) -> Captions | None:
    """Return the collector of captions; None where they are not read from the source."""
    if block["dataset_type"] not in TRAINED or block["caption_strategy"] in WITHOUT_TEXT:
        return None
    of_column = block["caption_strategy"] == "column"
    where = place_of(block, path, "caption_column") if of_column else f"{path}.caption_strategy"
    return Captions(where, "write the captions, or set `caption_strategy` to 'filename' or 'instanceprompt'")


def _take_caption(captions: Captions, strategy: str, stem: str, row: Row) -> None:
    if strategy == "textfile":
        captions.read(stem, row.caption, f"{row.name}.txt")
    elif isinstance(row.caption, Fault):
        captions.refuse(row.name, row.caption.reason)
    else:
        captions.take(stem, row.caption, row.name)


def _concluded(
    captions: Captions | None, block: dict[str, Any], path: str, images: Iterable[str], found: Findings
) -> dict[str, str]:
    if captions is not None:
        captions.report(found)
        return captions.found
    if block["dataset_type"] not in TRAINED:
        return {}
    return captions_without_text(block, path, images, found) or {}


def _own(key: str, images: Mapping[str, Picture], unusable: set[str]) -> str:
    """Return a key that no earlier row has: several rows may show one image, each with partners of its own."""
    if key not in images and key not in unusable:
        return key
    number = 2
    while f"{key}#{number}" in images or f"{key}#{number}" in unusable:
        number += 1
    return f"{key}#{number}"
