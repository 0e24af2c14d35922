"""Partners of `reference_loose` sets: an image may lack one, and one of another shape is cut by a box of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flowhooks.data.findings import Findings, count, some
from flowhooks.data.geometry import Geometry, plan_geometry
from flowhooks.data.sets import DataSet

LOOSE = "reference_loose"


def is_loose(data: DataSet) -> bool:
    return data.block["conditioning_type"] == LOOSE


def loose_cuts(
    images: DataSet, partner: DataSet, geometries: Mapping[str, Geometry], found: Findings
) -> dict[str, Geometry]:
    """Stem -> how the partner is cut, to the size of its image, for the pairs that there are.

    Images without a partner are noted: they are left out of pairs with this set. None at all is a problem, and so is a
    partner that would be enlarged, unless the image set's block allows that or leaves small images out.
    """
    if not (images.usable and partner.usable):
        return {}
    missing = [stem for stem in images.images if stem not in partner.images and stem not in partner.unusable]
    if missing and len(missing) == len(images.images):
        message = f"none of the {count(len(missing), 'image')} of {images.id!r} has a partner in {partner.id!r}"
        found.problem(partner.where, f"{message}; files pair by path without suffix, in the same case")
    elif missing:
        found.notes.append(
            f"{images.id}: {count(len(missing), 'image')} without a partner in {partner.id!r}, left out of its pairs: "
            f"{some(missing)}"
        )
    cuts, small = {}, []
    for stem, geometry in geometries.items():
        if (other := partner.images.get(stem)) is None:
            continue
        own = plan_geometry(other.width, other.height, (geometry.width, geometry.height), images.block["crop"], stem)
        if own.enlarges(other.width, other.height) and not images.block["allow_upscale"]:
            small.append(f"{stem} of {partner.id!r} ({other.size}, needed for {own.width}x{own.height})")
            if images.block["small_images"] == "leave_out":
                continue
        cuts[stem] = replace(geometry, box=own.box)
    if images.block["small_images"] == "leave_out":
        if small:
            found.notes.append(f"{images.id}: {count(len(small), 'pair')} left out, too small a partner: {some(small)}")
    else:
        remedy = "lower `resolution`, set `allow_upscale` to true, or `small_images` to 'leave_out'"
        found.listing(f"{images.path}.resolution", small, "files smaller than what is trained", remedy)
    return cuts
