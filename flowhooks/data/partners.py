"""Do the files of a conditioning set fit the images they are for?"""

from __future__ import annotations

import unicodedata
from collections import defaultdict

from flowhooks.data.findings import Findings, count, some
from flowhooks.data.geometry import Geometry, plan_geometry, target_size
from flowhooks.data.inspection import Picture
from flowhooks.data.sets import DataSet

ASPECT_TOLERANCE = 0.01


def check_partner(images: DataSet, partner: DataSet, found: Findings) -> None:
    """Every image has a partner, of its aspect ratio."""
    if not (images.usable and partner.usable):
        return
    where = partner.where
    present = partner.images.keys() | partner.unusable
    missing = [stem for stem in images.images if stem not in present]
    if missing:
        found.problem(
            where,
            f"{len(missing):,} of {count(len(images.images), 'image')} of {images.id!r} have no partner in "
            f"{partner.id!r}: {some(missing)}; files pair by path without suffix, in the same case"
            f"{_near_miss(missing, partner)}: add what is missing, or move these images out of the folder",
        )
    askew, resized = [], 0
    for stem, picture in images.images.items():
        other = partner.images.get(stem)
        if other is None or (other.width, other.height) == (picture.width, picture.height):
            continue
        if abs(picture.width * other.height / (picture.height * other.width) - 1) > ASPECT_TOLERANCE:
            askew.append(f"{stem} ({picture.size} image, {other.size} partner)")
        else:
            resized += 1
    remedy = f"crop them like the images of {images.id!r}"
    found.listing(where, askew, "partners of another aspect ratio than their image", remedy)
    if resized:
        found.notes.append(f"{partner.id}: {count(resized, 'file')} of another size than the image; resized to fit")


def _near_miss(missing: list[str], partner: DataSet) -> str:
    folded = {_fold(stem): stem for stem in partner.images}
    for stem in missing:
        if near := folded.get(_fold(stem)):
            return f" ({near!r} is there, {stem!r} is not)"
    return ""


def _fold(stem: str) -> str:
    # Also joins the composed and decomposed spelling of an accent, which differ between file systems.
    return unicodedata.normalize("NFC", stem).casefold()


def plan_geometries(images: DataSet, partners: list[DataSet], found: Findings) -> dict[str, Geometry]:
    """Stem -> how the image and all its partners are cut; none is enlarged unless the block allows it."""
    block = images.block
    geometries, small = {}, []
    shown = [images] + [each for each in partners if each.block["conditioning_type"] == "reference_strict"]
    for stem, picture in images.images.items():
        target = target_size(block["resolution"], picture.width, picture.height)
        geometry = plan_geometry(picture.width, picture.height, target, block["crop"], stem)
        geometries[stem] = geometry
        small += [_too_small(each, stem, geometry) for each in shown if _enlarged(each.images.get(stem), geometry)]
    if not block["allow_upscale"]:
        remedy = "lower `resolution`, remove the files, or set `allow_upscale` to true"
        found.listing(f"{images.path}.resolution", small, "files smaller than what is trained", remedy)
    return geometries


def _enlarged(picture: Picture | None, geometry: Geometry) -> bool:
    return picture is not None and geometry.enlarges(picture.width, picture.height)


def _too_small(data: DataSet, stem: str, geometry: Geometry) -> str:
    return f"{stem} of {data.id!r} ({data.images[stem].size}, needed for {geometry.width}x{geometry.height})"


def warn_of_orphans(links: dict[int, tuple[int, ...]], sets: list[DataSet], found: Findings) -> None:
    """Warn of files in a conditioning set that none of its image sets asks for."""
    wanted: dict[int, set[str]] = defaultdict(set)
    for i, linked in links.items():
        for j in linked:
            wanted[j] |= sets[i].images.keys() | sets[i].unusable
    for j, stems in wanted.items():
        orphans = [stem for stem in sets[j].images if stem not in stems]
        if orphans:
            found.warnings.append(
                f"{sets[j].id}: {count(len(orphans), 'file')} that no image asks for: {some(orphans)}"
            )
