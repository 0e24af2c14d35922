"""Plan the references of each sample: images that the pipeline is given beside its prompt. Free of torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from flowhooks.data.blocks import FIRST_FRAME, NO_REFERENCE, TARGET
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.geometry import Geometry
from flowhooks.data.partners import same_aspect
from flowhooks.data.records import DataSet, Record, Reference
from flowhooks.data.sampler import SHOWING, generator

ABSENT = "leave them out with `missing_reference` 'leave_out', or train them without a reference with 'none'"


def plan_references(
    images: DataSet, sets: Sequence[DataSet], geometries: Mapping[str, Geometry], found: Findings
) -> dict[str, tuple[Reference, ...]]:
    """Return stem -> the references of a sample, in the order of the sets and columns that hold them; samples that are
    left out are missing.

    Args:
        sets: the sets and columns of references that belong to the images.
        geometries: stem -> how the image is cut.
    """
    block = images.block
    first = block["reference"] == FIRST_FRAME
    if not _states_references(images, bool(sets) or first, found):
        return dict.fromkeys(images.images, ())
    planned: dict[str, tuple[Reference, ...]] = {}
    lacking: dict[str, list[str]] = {}
    for stem, picture in images.images.items():
        references = []
        if first and stem in geometries:
            own = geometries[stem]
            references.append(
                Reference(
                    argument=block["reference_argument"], image=picture, geometry=replace(own, shown=own.shown[:1])
                )
            )
        for each in sets:
            if stem in each.images:
                cut = (
                    replace(geometries[stem], shown=())
                    if block["reference_resolution"] and stem in geometries
                    else None
                )
                argument = each.block["reference_argument"]
                references.append(Reference(argument=argument, image=each.images[stem], geometry=cut))
            elif stem not in each.unusable:
                lacking.setdefault(stem, []).append(each.id)
        if stem not in lacking or block["missing_reference"] == NO_REFERENCE:
            planned[stem] = tuple(references)
    _tell_lacking(images, sets, lacking, found)
    if block["reference_resolution"] == TARGET:
        _check_aspects(images, sets, found)
    numbers = Counter(len(references) for references in planned.values())
    counts = ", ".join(f"{samples:,} with {number}" for number, samples in sorted(numbers.items()))
    found.notes.append(f"{images.id}: references: {counts or 'none'}")
    return planned


def shows_references(record: Record, seed: int, place: int) -> bool:
    """Return whether the pipeline gets the references of a draw at a place of the run's stream."""
    dropout = record.drawing.reference_dropout
    return not dropout or bool(np.random.Generator(generator(seed, SHOWING, place)).random() >= dropout)


def _states_references(images: DataSet, there: bool, found: Findings) -> bool:
    """Return whether the set has references; options of references without any are a problem."""
    block = images.block
    if block["reference"] == FIRST_FRAME and block["num_frames"] == 1:
        found.problem(f"{images.path}.reference", "is the first frame of a video; set `num_frames`, or remove it")
    if there:
        return True
    for key, plain in (("missing_reference", "error"), ("reference_dropout", 0), ("reference_resolution", None)):
        if block[key] != plain:
            message = "the set has no references; name them in `reference_column`, or link a set of `reference_image`"
            found.problem(f"{images.path}.{key}", message)
    return False


def _tell_lacking(images: DataSet, sets: Sequence[DataSet], lacking: Mapping[str, list[str]], found: Findings) -> None:
    policy = images.block["missing_reference"]
    for each in sets:
        stems = [stem for stem, names in lacking.items() if each.id in names]
        if not stems or not (images.usable and each.usable):
            continue
        what = (
            f"{len(stems):,} of {count(len(images.images), 'image')} of {images.id!r} have no reference in {each.id!r}"
        )
        if policy == "error":
            found.problem(each.where, f"{what}: {some(stems)}; add what is missing, {ABSENT}")
        elif policy == NO_REFERENCE:
            found.notes.append(f"{what}, and are trained without it: {some(stems)}")
        elif len(stems) == len(images.images):
            found.problem(each.where, f"{what}, so all would be left out; files pair by path without suffix")
        else:
            found.notes.append(f"{what}, and are left out: {some(stems)}")


def _check_aspects(images: DataSet, sets: Sequence[DataSet], found: Findings) -> None:
    for each in sets:
        askew = [
            f"{stem} ({picture.size} image, {other.size} reference)"
            for stem, picture in images.images.items()
            if (other := each.images.get(stem)) is not None and not same_aspect(picture, other)
        ]
        remedy = "crop them like the images, or remove `reference_resolution`, so that the pipeline scales them"
        found.listing(each.where, askew, "references of another aspect ratio than their image", remedy)
