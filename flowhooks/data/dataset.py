"""Read cached samples, and collate them into a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowhooks.batch import Batch
from flowhooks.data.geometry import Geometry
from flowhooks.data.given_images import ShownImages
from flowhooks.data.inspection import Picture
from flowhooks.data.records import Record, Reference
from flowhooks.data.store import Entries

if TYPE_CHECKING:
    from flowhooks.data.encode_references import Shown


class CachedDataset(Dataset):
    """Gives samples of latents, condition and mask, in the order of the audit's records. Made by build_cache.

    Args:
        records: records of the audit.
        entries: where the tensors are.
        latents, masks: (image, geometry) -> entry key.
        captions: caption -> entry key, as :func:`~flowhooks.data.encode.caption_key`, for every caption that a sample
            may take.
        grids: height, width and frames of samples -> (h, w), or (t,), of their masks.
        provides: as in the audit; whatever is not in it is left out of every sample.
        references: (caption or None, references, size) -> entry key, as
            :class:`~flowhooks.data.encode_references.ReferenceEncoder` has them; None for a pipeline without.
        argument: the pipeline argument of references that name none.
        unprompted: arguments that conditions hold without their captions too.
    """

    def __init__(
        self,
        *,
        records: Sequence[Record],
        entries: Entries,
        latents: Mapping[tuple[Picture, Geometry], str],
        masks: Mapping[tuple[Picture, Geometry], str],
        captions: Mapping[tuple[str, tuple[int, int, int] | None], str],
        grids: Mapping[tuple[int, int, int], tuple[int, ...]],
        provides: frozenset[str],
        references: Mapping[Shown, str] | None = None,
        argument: str = "",
        unprompted: Sequence[str] = (),
    ):
        self.records = records
        self.provides = provides
        self.entries = entries
        self._latents = latents
        self._masks = masks
        self._captions = captions
        self._grids = grids
        self._references = references
        self._argument = argument
        self._unprompted = unprompted

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the sample of a record under its first caption, see `sample`."""
        return self.sample(index, self.records[index].caption)

    def sample(self, index: int, caption: str, *, shown: bool = True) -> dict[str, Any]:
        """Return `clean` and `rejected` (one sample's latents), `mask` `[1, h, w]`, `condition` of size 1, `file`,
        `caption`, and `columns` and `references` of the record.

        Args:
            shown: whether the pipeline gets the references of the record; else none.

        Raises DataError naming the cache file if an entry is gone, damaged, or holds NaN.
        """
        record = self.records[index]
        return {
            "clean": self._side(record.image, record.geometry),
            "rejected": self._rejected(record),
            "mask": self._mask(record),
            "condition": self.condition(caption, record.geometry.size, record.references if shown else ()),
            "size": record.geometry.size,
            "file": record.image.asset.name,
            "caption": caption,
            "columns": record.columns,
            "references": ShownImages(record.references if shown else (), self._argument),
        }

    def condition(self, caption: str, size: tuple[int, int, int], references: tuple[Reference, ...] = ()) -> Any:
        """Return the condition of one caption of the data set at a size, with references, for one sample, on the
        CPU."""
        from flowhooks.probe import Condition

        if self._references is not None:
            if (key := self._references.get((caption, references, size))) is not None:
                found = Condition.unflatten(self.entries.read("conditions", key))
                if not self._unprompted:
                    return found
                null = Condition.unflatten(self.entries.read("conditions", self._references["", references, size]))
                return found.with_unprompted(null.only(self._unprompted))
            found = Condition.unflatten(self.entries.read("references", self._references[None, references, size]))
            return self._of_caption(caption, size).merged(found)
        return self._of_caption(caption, size)

    def _of_caption(self, caption: str, size: tuple[int, int, int]) -> Any:
        from flowhooks.probe import Condition

        key = self._captions.get((caption, size)) or self._captions[caption, None]
        return Condition.unflatten(self.entries.read("text", key))

    def _side(self, picture: Picture, geometry: Geometry) -> Tensor:
        return self.entries.read("latents", self._latents[picture, geometry])["latents"]

    def _rejected(self, record: Record) -> Tensor | None:
        if record.rejected is None or "rejected" not in self.provides:
            return None
        return self._side(record.rejected, record.rejected_geometry or record.geometry)

    def _mask(self, record: Record) -> Tensor | None:
        if "mask" not in self.provides:
            return None
        masks = [self.entries.read("masks", self._masks[mask, record.geometry])["mask"] for mask in record.masks]
        if masks:
            return torch.stack(masks).prod(0)
        # Where other samples have masks, one without trains everywhere.
        return torch.ones(1, *self._grids[record.geometry.size])


def collate(items: Sequence[Mapping[str, Any]]) -> Batch:
    """Collate items of a CachedDataset into a Batch: `clean` and `rejected` `[B, ...]`, `mask` `[B, 1, h, w]`.

    Raises ValueError for items of several sizes, which may be packed to one shape.
    """
    size = items[0]["size"]
    if any(item["size"] != size for item in items):
        raise ValueError(f"a batch holds samples of one size, not of {sorted({item['size'] for item in items})}")
    condition = items[0]["condition"]
    return Batch(
        clean=torch.stack([item["clean"] for item in items]),
        condition=condition.join([item["condition"] for item in items[1:]]),
        rejected=_stack([item["rejected"] for item in items]),
        mask=_stack([item["mask"] for item in items]),
        files=tuple(item["file"] for item in items),
        prompts=tuple(item["caption"] for item in items),
        records=tuple(item["columns"] for item in items) if any(item["columns"] for item in items) else (),
        references=tuple(item["references"] for item in items) if any(item["references"] for item in items) else (),
        size=size,
    )


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
