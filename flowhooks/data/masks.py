"""Interpret the values of masks, and warn where they look as if something else was meant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from PIL import Image

from flowhooks.data.blocks import MASK_TYPES, TRAINED
from flowhooks.data.colors import eight_bit
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.images import BadImage
from flowhooks.data.inspection import Picture
from flowhooks.data.records import DataSet
from flowhooks.data.transform import mask_levels, open_upright

GREY, LABELS = "grey", "labels"
#: Number of masks of a set that the audit decodes: the masks of a set are usually all made in one way.
LOOKED_AT = 64
#: Brightness, of 255. A mask that is nowhere brighter trains with less than half the weight everywhere.
DIM = 128
BLACK = "the mask is black: it trains nowhere"


def refuse_values(block: dict[str, Any], path: str, found: Findings) -> None:
    """Report a `mask_values` that applies to no mask, once the columns of the block are known."""
    if block["mask_values"] == GREY:
        return
    images = block["dataset_type"] in TRAINED
    # Columns that could not be read are None, and may hold masks.
    if images and (block["type"] == "local" or block["mask_column"] == []):
        remedy = "write it into the conditioning set that holds them"
    elif not images and block["conditioning_type"] not in MASK_TYPES:
        remedy = "remove it"
    else:
        return
    found.problem(f"{path}.mask_values", f"is {block['mask_values']!r}, and this set holds no masks; {remedy}")


def valued(data: DataSet) -> DataSet:
    """Return the set with its masks marked as its block's `mask_values` says, those in columns of the set itself
    included."""
    columns = tuple(map(valued, data.columns))
    if data.block["mask_values"] != LABELS or data.block["conditioning_type"] not in MASK_TYPES:
        return replace(data, columns=columns)
    labelled = {stem: replace(picture, labels=True) for stem, picture in data.images.items()}
    return replace(data, images=labelled, columns=columns)


def dimness(mask: Picture) -> str | None:
    """Say that a mask is nowhere bright and what that does; None if it is. Raises BadImage, OSError.

    Also None for a mask that is black all over, or read as labels.
    """
    data = mask.asset.read()
    return _dim(mask, data, _brightest(mask, data))


def tell_values(sets: Iterable[DataSet], found: Findings) -> None:
    """Report sets whose masks train nowhere, which is a problem where all of them do, and warn of masks that are
    nowhere bright: labels, or the classes of a palette, that are read as grey."""
    for data in sets:
        tell_values(data.columns, found)
        if data.block["conditioning_type"] in MASK_TYPES:
            _tell_values(data, found)


def _tell_values(data: DataSet, found: Findings) -> None:
    looked = {stem: seen for stem, mask in _spread(list(data.images.items())) if (seen := _look(mask))}
    black = [stem for stem, seen in looked.items() if seen.brightest == 0]
    dim = {stem: seen.dim for stem, seen in looked.items() if seen.dim}
    others = (mask for stem, mask in data.images.items() if stem not in looked)
    if black and len(black) == len(looked) and not any(seen.brightest for mask in others if (seen := _look(mask))):
        every = f"none of the {count(len(data.images), 'mask')} of {data.id!r} has a bright pixel, so none trains "
        message = f"{every}anything: {some(list(data.images))}; {_remedy(data.images[black[0]])}"
        found.problem(data.where, message)
    elif black:
        of = f"{len(black):,} of {count(len(looked), 'mask')} that were decoded"
        # A few may be meant: images in which there is nothing to train.
        listed = found.warnings if 2 * len(black) >= len(looked) else found.notes
        listed.append(f"{data.id}: {BLACK} ({of}): {some(black)}; {_remedy(data.images[black[0]])}")
    if dim:
        first = next(iter(dim))
        of = f"{len(dim):,} of {count(len(looked), 'mask')} that were decoded"
        found.warnings.append(
            f"{data.id}: {first}: {dim[first]}; so for {of}: {some(list(dim))}. If the values are labels, set "
            f"`mask_values` to {LABELS!r}; else white is what trains fully"
        )


class _Seen(NamedTuple):
    """Holds the brightest value of a mask as it is read, in [0, 255], and the message if it is nowhere bright."""

    brightest: int
    dim: str | None


def _look(mask: Picture) -> _Seen | None:
    try:
        data = mask.asset.read()
        brightest = _brightest(mask, data)
        return _Seen(brightest, _dim(mask, data, brightest))
    except (BadImage, OSError):
        return None  # reported when it is decoded for training, or shown


def _brightest(mask: Picture, data: bytes) -> int:
    return int(mask_levels(data, labels=mask.labels).getextrema()[1])  # type: ignore[arg-type]


def _dim(mask: Picture, data: bytes, brightest: int) -> str | None:
    if mask.labels or brightest in (0, 255) or (brightest >= DIM and not _colourful(open_upright(data))):
        return None
    return f"the brightest value of the mask is {brightest} of 255, so it trains with a weight of {brightest / 255:.3g}"


def _remedy(mask: Picture) -> str:
    """Say what to do about a black mask, by what its file holds."""
    data = mask.asset.read()
    if not mask.labels and _brightest(replace(mask, labels=True), data):
        return f"the file holds other values than 0: if they are labels, set `mask_values` to {LABELS!r}"
    image = open_upright(data)
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[1] == 0:
        return "the file is transparent all over, which counts as black: save masks without transparency"
    return "white is what trains; replace such masks, or take the set out of its links to train everywhere"


def _spread(items: list[tuple[str, Picture]]) -> list[tuple[str, Picture]]:
    if len(items) <= LOOKED_AT:
        return items
    return [items[i * (len(items) - 1) // (LOOKED_AT - 1)] for i in range(LOOKED_AT)]


def _colourful(image: Image.Image) -> bool:
    """Return whether a palette uses other colours than grey, which then stand for classes."""
    if image.mode not in ("P", "PA"):
        return False
    used = eight_bit(image).convert("RGB").getcolors(256) or ()
    return any(len(set(colour)) > 1 for _, colour in used if isinstance(colour, tuple))
