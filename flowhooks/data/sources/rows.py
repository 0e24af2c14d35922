"""Turns the rows of a table, or the samples of an archive, into a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowhooks.data.assets import Asset
from flowhooks.data.captions import WITHOUT_TEXT, Captions, captions_without_text
from flowhooks.data.findings import Findings
from flowhooks.data.inspection import Picture
from flowhooks.data.sets import DataSet
from flowhooks.data.sources.columns import Columns
from flowhooks.data.sources.inspecting import Fault, Inspector, note_copies


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample of a source, before its pictures are looked at.

    Args:
        name: for people: `metadata.csv line 3`.
        key: what it pairs by, a path stem.
        pictures: column -> where its picture is, None where the cell is empty.
        caption: what stands in the caption column; under `textfile`, where the text is. None where there is nothing.
    """

    name: str
    key: str
    pictures: Mapping[str, Asset | Fault | None]
    caption: Any = None


@dataclass
class _Partners:
    """The pictures of a further column while the rows go by."""

    column: str
    key: str
    kind: str
    inspector: Inspector = field(default_factory=Inspector)
    images: dict[str, Picture] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)

    def take(self, stem: str, row: Row) -> None:
        cell = row.pictures.get(self.column)
        picture = None
        if cell is None:
            self.missing.append(row.name)
        else:
            picture = self.inspector.look(cell, f"{row.name}, {self.column!r},")
        if picture is None:
            self.unusable.add(stem)
        else:
            self.images[stem] = picture

    def conclude(self, images: DataSet, found: Findings) -> DataSet:
        where = f"{images.path}.{self.key}"
        self.inspector.report(where, found)
        found.listing(
            where, self.missing, f"rows with nothing in {self.column!r}", "fill the cells, or take these rows out"
        )
        about = {"id": f"{images.id}.{self.column}", "dataset_type": "conditioning", "conditioning_type": self.kind}
        return DataSet(
            block={**images.block, **about},
            path=images.path,
            images=self.images,
            unusable=frozenset(self.unusable),
            place=self.key,
        )


def collect(
    block: dict[str, Any], path: str, columns: Columns, rows: Iterable[Row], found: Findings, *, about: str
) -> DataSet:
    """Look at every picture and caption of `rows`; problems go to `found`, each naming its row.

    Args:
        columns: which columns are used, and for what.
        about: the table or archive, for messages.
    """
    problems_before = len(found.problems)
    clips = block["num_frames"] > 1
    inspector, images, unusable = Inspector(clips=clips), dict[str, Picture](), set[str]()
    partners = [
        _Partners(name, "rejected_column", "reference_strict", Inspector(clips=clips)) for name in columns.rejected
    ]
    partners += [_Partners(name, "mask_column", "mask") for name in columns.masks]
    captions = _captions(block, path)
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
    inspector.report(f"{path}.instance_data_dir", found)
    if not images and not unusable and len(found.problems) == problems_before:
        message = f"{about} holds no sample; add some, name another place, or set `disabled` to true"
        found.problem(f"{path}.instance_data_dir", message)
    note_copies(block["id"], images, found)
    result = DataSet(
        block=block,
        path=path,
        images=images,
        captions=_concluded(captions, block, path, images, found),
        unusable=frozenset(unusable),
        usable=bool(images or unusable),
    )
    return replace(result, columns=tuple(partner.conclude(result, found) for partner in partners))


def _captions(block: dict[str, Any], path: str) -> Captions | None:
    """What collects captions; None where they are not read from the source."""
    if block["dataset_type"] != "image" or block["caption_strategy"] in WITHOUT_TEXT:
        return None
    key = "caption_column" if block["caption_strategy"] == "column" else "caption_strategy"
    return Captions(f"{path}.{key}", "write the captions, or set `caption_strategy` to 'filename' or 'instanceprompt'")


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
    if block["dataset_type"] != "image":
        return {}
    return captions_without_text(block, path, images, found) or {}


def _own(key: str, images: Mapping[str, Picture], unusable: set[str]) -> str:
    """A key that no earlier row has: several rows may show one image, each with partners of its own."""
    if key not in images and key not in unusable:
        return key
    number = 2
    while f"{key}#{number}" in images or f"{key}#{number}" in unusable:
        number += 1
    return f"{key}#{number}"
