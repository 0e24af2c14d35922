"""The whole pairing, looked at before any weight loads. Free of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowhooks.data.findings import Findings, count
from flowhooks.data.folders import DataSet, read_folder
from flowhooks.data.links import link
from flowhooks.data.partners import check_partner, plan_geometries, warn_of_orphans
from flowhooks.data.records import Audit, Record
from flowhooks.errors import DataError

if TYPE_CHECKING:
    from flowhooks.config import Datasets

MASK_TYPES = ("mask", "segmentation")


def audit(datasets: Datasets | None) -> Audit:
    """Read every file of every data set and pair them by relative path stem.

    `reference_strict` sets give the rejected side (one record per set), `mask` and `segmentation` sets give masks;
    every linked set applies to every sample. A partner must be there and have the image's aspect (within 1 %); its size
    may differ. Files in a conditioning set that no image asks for are a warning.

    None is a run that draws what it trains on: an audit of nothing. Raises DataError with every problem found.
    """
    if datasets is None:
        nothing = dict.fromkeys(("samples", "images", "rejected", "masks", "captions"), 0)
        line = "none: this run draws what it trains on"
        return Audit(records=(), counts=nothing, provides=frozenset(), report=(line,), warnings=())
    found = Findings(datasets.source, datasets.root)
    links = link(datasets.blocks, found)
    sets = [read_folder(block, found.at(i), found) for i, block in enumerate(datasets.blocks)]
    records: list[Record] = []
    lines: list[str] = []
    for i, linked in links.items():
        partners = [sets[j] for j in linked]
        records += _pair(sets[i], partners, found)
        lines.append(_line(sets[i], partners))
    warn_of_orphans(links, sets, found)
    if found.problems:
        raise DataError(found.problems)
    return _conclude(records, sets, lines, found)


def _pair(images: DataSet, partners: list[DataSet], found: Findings) -> list[Record]:
    for partner in partners:
        check_partner(images, partner, found)
    geometries = plan_geometries(images, partners, found)
    rejected_sets = [each for each in partners if each.block["conditioning_type"] == "reference_strict"]
    mask_sets = [each for each in partners if each.block["conditioning_type"] in MASK_TYPES]
    records: list[Record] = []
    for stem, picture in images.images.items():
        if stem not in images.captions or any(stem not in each.images for each in partners):
            continue
        for rejected in rejected_sets or (None,):
            records.append(
                Record(
                    key=stem,
                    dataset=images.id,
                    image=picture,
                    caption=images.captions[stem],
                    rejected=rejected.images[stem] if rejected else None,
                    masks=tuple(each.images[stem] for each in mask_sets),
                    geometry=geometries[stem],
                )
            )
    return records * (1 + images.block["repeats"])


def _line(images: DataSet, partners: list[DataSet]) -> str:
    parts = [count(len(images.images), "image")]
    parts += [f"{len(each.images):,} {each.block['conditioning_type']} from {each.id!r}" for each in partners]
    return f"{images.id}: {', '.join(parts)}; captions by {images.block['caption_strategy']}"


def _conclude(records: list[Record], sets: list[DataSet], lines: list[str], found: Findings) -> Audit:
    files: dict[str, set[Any]] = {
        "images": {record.image for record in records},
        "rejected": {record.rejected for record in records if record.rejected},
        "masks": {mask for record in records for mask in record.masks},
        "captions": {record.caption for record in records},
    }
    return Audit(
        records=tuple(records),
        counts={"samples": len(records), **{name: len(values) for name, values in files.items()}},
        provides=_provided(records, found),
        report=(*lines, *found.notes),
        warnings=tuple(found.warnings),
    )


def _provided(records: list[Record], found: Findings) -> frozenset[str]:
    provides = {"image"}
    unpaired = sum(record.rejected is None for record in records)
    unmasked = sum(not record.masks for record in records)
    if not unpaired:
        provides.add("rejected")
    elif unpaired < len(records):
        share = f"{unpaired:,} of {len(records):,}"
        found.warnings.append(f"{share} samples have no rejected side, so none is offered to hooks")
    if unmasked < len(records):
        provides.add("mask")
        if unmasked:
            found.warnings.append(f"{unmasked:,} of {len(records):,} samples have no mask; they train everywhere")
    return frozenset(provides)
