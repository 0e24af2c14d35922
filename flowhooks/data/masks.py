"""What the values of a mask mean, and whether they look as if something else was meant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from PIL import Image

from flowhooks.data.blocks import MASK_TYPES
from flowhooks.data.colors import eight_bit
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.inspection import BadImage, Picture
from flowhooks.data.sets import DataSet
from flowhooks.data.transform import mask_levels, open_upright

GREY, LABELS = "grey", "labels"
#: Masks of a set that are decoded by the audit: what makes masks makes all of a set alike.
LOOKED_AT = 64
#: Of 255. A mask that is nowhere brighter trains with less than half the weight, everywhere.
DIM = 128


def refuse_values(block: dict[str, Any], path: str, found: Findings) -> None:
    """Tell a `mask_values` that applies to no mask, once the columns of the block are known."""
    if block["mask_values"] == GREY:
        return
    images = block["dataset_type"] == "image"
    # Columns that could not be read are None, and may hold masks.
    if images and (block["type"] == "local" or block["mask_column"] == []):
        remedy = "write it into the conditioning set that holds them"
    elif not images and block["conditioning_type"] not in MASK_TYPES:
        remedy = "remove it"
    else:
        return
    found.problem(f"{path}.mask_values", f"is {block['mask_values']!r}, and this set holds no masks; {remedy}")


def valued(data: DataSet) -> DataSet:
    """The set, its masks marked as its block's `mask_values` says; those in columns of its own too."""
    columns = tuple(map(valued, data.columns))
    if data.block["mask_values"] != LABELS or data.block["conditioning_type"] not in MASK_TYPES:
        return replace(data, columns=columns)
    labelled = {stem: replace(picture, labels=True) for stem, picture in data.images.items()}
    return replace(data, images=labelled, columns=columns)


def dimness(mask: Picture) -> str | None:
    """That a mask is nowhere bright and what that does, or None. Raises BadImage, OSError.

    Nothing is said of one that is black all over, or read as labels.
    """
    if mask.labels:
        return None
    data = mask.asset.read()
    brightest = int(mask_levels(data).getextrema()[1])  # type: ignore[arg-type]
    if brightest in (0, 255) or (brightest >= DIM and not _colourful(open_upright(data))):
        return None
    return f"the brightest value of the mask is {brightest} of 255, so it trains with a weight of {brightest / 255:.3g}"


def warn_of_dim(sets: Iterable[DataSet], found: Findings) -> None:
    """Warn of sets whose masks are nowhere bright: labels, or the classes of a palette, that are read as grey."""
    for data in sets:
        warn_of_dim(data.columns, found)
        if data.block["conditioning_type"] not in MASK_TYPES:
            continue
        looked = _spread(list(data.images.items()))
        dim = {stem: said for stem, mask in looked if (said := _said(mask))}
        if dim:
            first = next(iter(dim))
            of = f"{len(dim):,} of {count(len(looked), 'mask')} that were looked at"
            found.warnings.append(
                f"{data.id}: {first}: {dim[first]}; so for {of}: {some(list(dim))}. If the values are labels, set "
                f"`mask_values` to {LABELS!r}; else white is what trains fully"
            )


def _said(mask: Picture) -> str | None:
    try:
        return dimness(mask)
    except (BadImage, OSError):
        return None  # told where it is decoded for training, or drawn


def _spread(items: list[tuple[str, Picture]]) -> list[tuple[str, Picture]]:
    if len(items) <= LOOKED_AT:
        return items
    return [items[i * (len(items) - 1) // (LOOKED_AT - 1)] for i in range(LOOKED_AT)]


def _colourful(image: Image.Image) -> bool:
    """Whether a palette holds other colours than grey, among those in use: it then tells classes apart."""
    if image.mode not in ("P", "PA"):
        return False
    used = eight_bit(image).convert("RGB").getcolors(256) or ()
    return any(len(set(colour)) > 1 for _, colour in used if isinstance(colour, tuple))
