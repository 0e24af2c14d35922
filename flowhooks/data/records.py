"""Define what readers return, a data set with every file looked at, and what the audit returns, a record for each
sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowhooks.data.geometry import Geometry
from flowhooks.data.inspection import Picture


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Holds one data set block and its images.

    Args:
        block: the validated block.
        path: its JSON path, `$[1]`.
        images: stem -> every readable image; empty when the set cannot be used.
        captions: stem -> prompt, for an image set; a stem without one was reported as a fault.
        records: stem -> name -> cell, for an image set, for every name under `columns` that its row fills.
        unusable: stems whose image exists and was reported as a fault.
        usable: whether it could be opened.
        columns: partners from columns or members of the set itself, each like a linked conditioning set.
        place: key of the block that names the place of the images.
    """

    block: dict[str, Any]
    path: str
    images: dict[str, Picture]
    captions: dict[str, str] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    unusable: frozenset[str] = frozenset()
    usable: bool = True
    columns: tuple[DataSet, ...] = ()
    place: str = "instance_data_dir"

    @classmethod
    def unread(cls, block: dict[str, Any], path: str) -> DataSet:
        """Return the set of a block that could not be opened, or is disabled."""
        return cls(block=block, path=path, images={}, usable=False)

    @property
    def id(self) -> str:
        return self.block["id"]

    @property
    def where(self) -> str:
        """Return the JSON path of the key that names the place of the images."""
        return f"{self.path}.{self.place}"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Holds one image, or one text such as lyrics, that the pipeline is given beside a sample's prompt.

    Args:
        argument: the pipeline argument that takes it; None for the only one.
        image: the image, or the video of which it is the first kept frame.
        geometry: how it is cut; None hands it over as its file is.
        text: the text, or a number, in place of an image.
    """

    argument: str | None
    image: Picture | None = None
    geometry: Geometry | None = None
    text: str | int | float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height as the pipeline gets it."""
        assert self.image is not None, "a text has no size"
        cut = self.geometry
        return (self.image.width, self.image.height) if cut is None else (cut.width, cut.height)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Says how a data set is drawn from.

    Args:
        probability: relative weight of each of its samples, above 0.
        start_step: optimiser steps done before it is drawn.
        end_step: optimiser steps done after which it is no longer drawn; None: to the end.
        caption_dropout: share of draws, in [0, 1], with the empty caption.
        reference_dropout: share of draws, in [0, 1], without references.
    """

    probability: float = 1.0
    start_step: int = 0
    end_step: int | None = None
    caption_dropout: float = 0.0
    reference_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Record:
    """Holds one sample of an image data set with its partners.

    Args:
        key: path stem relative to the data set folder, with `/` between folders.
        dataset: `id` of the image data set.
        image: the preferred image.
        caption: its prompt.
        wordings: other prompts; each draw uses `caption` or one of these.
        rejected: the rejected partner, if there is one.
        masks: every mask of the sample; they multiply.
        references: images that the pipeline is given beside the prompt, for both sides alike.
        geometry: how the image, the rejected image and the masks are cut.
        rejected_geometry: how the rejected image is cut where it has a box of its own, of the same size.
        drawing: how often and when the sample's data set is drawn.
        columns: name -> cell, for every name under `columns` of its data set.
    """

    key: str
    dataset: str
    image: Picture
    caption: str
    wordings: tuple[str, ...] = ()
    rejected: Picture | None = None
    masks: tuple[Picture, ...] = ()
    references: tuple[Reference, ...] = ()
    geometry: Geometry
    rejected_geometry: Geometry | None = None
    drawing: Drawing = Drawing()
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def sides(self) -> tuple[tuple[Picture, Geometry], ...]:
        """Return the image, and the rejected one if there is one, each with how it is cut."""
        if self.rejected is None:
            return ((self.image, self.geometry),)
        return (self.image, self.geometry), (self.rejected, self.rejected_geometry or self.geometry)

    @property
    def captions(self) -> tuple[str, ...]:
        """Return all captions that this sample can be trained with, without the empty one of caption dropout."""
        return (self.caption, *self.wordings)

    @property
    def drawn_references(self) -> tuple[tuple[Reference, ...], ...]:
        """Return the references of every draw: all, and none where they are dropped."""
        return (self.references, ()) if self.references and self.drawing.reference_dropout else (self.references,)

    @property
    def bucket(self) -> tuple[int, int, int]:
        """Return width, height and frames, as trained on; a batch holds records of one bucket."""
        return self.geometry.width, self.geometry.height, self.geometry.frames

    @property
    def width(self) -> int:
        """Return the width in pixels, as trained on."""
        return self.geometry.width

    @property
    def height(self) -> int:
        """Return the height in pixels, as trained on."""
        return self.geometry.height


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Holds a pairing without faults.

    Args:
        records: every sample of an epoch; one with repeats occurs several times.
        counts: `samples` in an epoch; numbers of distinct `images`, `rejected`, `masks` and `references`; `captions` as
            distinct texts.
        provides: `image`; `rejected` if every record has one; `mask` if any has (the others train everywhere);
            `reference` if any has one; every name of `columns` that all records have.
        report: one line for each data set and the notes, for the terminal.
        warnings: what is allowed but probably not meant.
    """

    records: tuple[Record, ...]
    counts: dict[str, int]
    provides: frozenset[str]
    report: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def given(self) -> frozenset[str]:
        """Return what hooks may need of the data: ``data:<name>`` for each of ``provides``."""
        return frozenset(f"data:{name}" for name in self.provides)

    @property
    def arguments(self) -> tuple[str | None, ...]:
        """Return the pipeline arguments of all references, each once; None for the only one that the pipeline has."""
        return tuple(dict.fromkeys(each.argument for record in self.records for each in record.references))

    @property
    def buckets(self) -> dict[tuple[int, int, int], int]:
        """Return width, height and frames -> samples of an epoch, sorted by size."""
        return dict(sorted(Counter(record.bucket for record in self.records).items()))

    @property
    def captions(self) -> tuple[str, ...]:
        """Return every caption that a draw may use, sorted; the empty one only where captions are dropped."""
        return tuple(sorted(distinct_captions(self.records)))


def partly_rejected(records: Sequence[Record]) -> str | None:
    """Say why no rejected side is offered to hooks although some records have one; None where all or none have."""
    lacking = [record for record in records if record.rejected is None]
    if len(lacking) in (0, len(records)):
        return None
    names = ", ".join(repr(name) for name in dict.fromkeys(record.dataset for record in lacking))
    return (
        f"{len(lacking):,} of {len(records):,} samples have no rejected side, those of {names}, so none is offered to "
        "hooks; give every image set one, or train those sets in a run of their own"
    )


def distinct_captions(records: Iterable[Record]) -> set[str]:
    """Return every caption that a draw of the records may use."""
    distinct: set[str] = set()
    for record in records:
        distinct.update(record.captions)
        if record.drawing.caption_dropout:
            distinct.add("")
    return distinct
