"""What the audit hands on: one record per training sample."""

from __future__ import annotations

from dataclasses import dataclass

from flowhooks.data.geometry import Geometry
from flowhooks.data.inspection import Picture


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample of an image data set with its partners.

    Args:
        key: path stem relative to the data set folder, with `/` between folders.
        dataset: `id` of the image data set.
        image: the preferred image.
        caption: its prompt.
        rejected: the rejected partner, if there is one.
        masks: every mask of the sample; they multiply.
        geometry: how the image, the rejected image and the masks are cut.
    """

    key: str
    dataset: str
    image: Picture
    caption: str
    rejected: Picture | None = None
    masks: tuple[Picture, ...] = ()
    geometry: Geometry

    @property
    def bucket(self) -> tuple[int, int, int]:
        """Width, height and frames, as trained on; a batch holds records of one bucket."""
        return self.geometry.width, self.geometry.height, self.geometry.frames

    @property
    def width(self) -> int:
        """Pixels, as trained on."""
        return self.geometry.width

    @property
    def height(self) -> int:
        """Pixels, as trained on."""
        return self.geometry.height


@dataclass(frozen=True, kw_only=True)
class Audit:
    """A pairing without faults.

    Args:
        records: every sample of an epoch; one with repeats stands here several times.
        counts: `samples` in an epoch; `images`, `rejected` and `masks` as distinct ones; `captions` as distinct texts.
        provides: `image`; `rejected` if every record has one; `mask` if any has (the others train everywhere).
        report: one line a data set and what was noticed, for the terminal.
        warnings: what is allowed and likely not meant.
    """

    records: tuple[Record, ...]
    counts: dict[str, int]
    provides: frozenset[str]
    report: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions, sorted."""
        return tuple(sorted({record.caption for record in self.records}))
