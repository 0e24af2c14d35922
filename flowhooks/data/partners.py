"""Check that the files of a conditioning set fit their images.

An image may lack a partner in a `reference_loose` set, and one of another shape there is cut by a box of its own.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from flowhooks.data.blocks import holds_sound
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.frames import plan_frames
from flowhooks.data.geometry import Geometry, plan_geometry
from flowhooks.data.inspection import Picture
from flowhooks.data.records import DataSet, Record
from flowhooks.data.sizing import Sizing, check_sizing
from flowhooks.data.sound import SoundSizing

ASPECT_TOLERANCE = 0.01
LOOSE = "reference_loose"
SAME = "both sides are the same file"


def same_aspect(one: Picture, other: Picture) -> bool:
    """Return whether one box can cut both: their aspects agree within 1 %; two sound files are equally long."""
    if one.sound is not None:
        return other.sound is None or one.width == other.width
    return abs(one.width * other.height / (one.height * other.width) - 1) <= ASPECT_TOLERANCE


def check_partner(images: DataSet, partner: DataSet, found: Findings) -> None:
    """Check that every image has a partner of its aspect ratio."""
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
        if picture.sound is not None and other.sound is None:
            continue
        if not same_aspect(picture, other):
            askew.append(f"{stem} ({picture.size} image, {other.size} partner)")
        else:
            resized += 1
    sound = any(picture.sound is not None for picture in images.images.values())
    shape, cut = ("length", "cut") if sound else ("aspect ratio", "crop")
    remedy = f"{cut} them like the images of {images.id!r}"
    found.listing(where, askew, f"partners of another {shape} than their image", remedy)
    if resized:
        found.notes.append(f"{partner.id}: {count(resized, 'file')} of another size than the image; resized to fit")


def _near_miss(missing: list[str], partner: DataSet) -> str:
    spelled = {unicodedata.normalize("NFC", stem) for stem in partner.images}
    if accents := [stem for stem in missing if unicodedata.normalize("NFC", stem) in spelled]:
        return (
            f" ({some(accents)}: there under a name that looks alike and differs in its Unicode form only, composed "
            "here and decomposed there or the other way round; rename the files of one folder to one form, such as NFC)"
        )
    folded = {_fold(stem): stem for stem in partner.images}
    for stem in missing:
        if near := folded.get(_fold(stem)):
            return f" ({near!r} is there, {stem!r} is not)"
    return ""


def _fold(stem: str) -> str:
    # Also joins the composed and decomposed spelling of an accent, which differ between file systems.
    return unicodedata.normalize("NFC", stem).casefold()


def plan_geometries(images: DataSet, partners: list[DataSet], found: Findings) -> dict[str, Geometry]:
    """Return stem -> how the image and all its partners are cut; none is enlarged unless the block allows it.

    Images that are too small are a problem; where the block leaves them out, they get no geometry and a note.
    """
    block = images.block
    if not check_sizing(block, images.path, found):
        return {}
    sizing = sizing_of(images)
    geometries: dict[str, Geometry] = {}
    below: dict[str, list[str]] = {}
    small: dict[str, list[str]] = {}
    sides = [images] + [each for each in partners if each.block["conditioning_type"] == "reference_strict"]
    for stem, shown in plan_frames(images, partners, found).items():
        picture = images.images[stem]
        width, height = picture.width, picture.height
        target, scale = sizing.target(width, height, stem), sizing.scale(width, height)
        geometries[stem] = geometry = plan_geometry(width, height, target, block["crop"], stem, shown, scale)
        if sizing.too_small(picture.width, picture.height):
            below[stem] = [f"{stem} ({picture.size})"]
        elif not block["allow_upscale"]:
            enlarged = [
                _too_small(each, stem, geometry) for each in sides if _enlarged(each.images.get(stem), geometry)
            ]
            if enlarged:
                small[stem] = enlarged
    _tell_small(images, below, small, found)
    if block["small_images"] == "leave_out":
        geometries = {stem: each for stem, each in geometries.items() if stem not in below and stem not in small}
        if images.images and not geometries:
            found.problem(f"{images.path}.small_images", "leaves out every image; lower `resolution`")
    return geometries


def sizing_of(images: DataSet) -> Sizing | SoundSizing:
    """Return what says at which size each sample of a set is trained."""
    return SoundSizing.of(images) if holds_sound(images.block) else Sizing.of(images.block)


def _tell_small(images: DataSet, below: dict[str, list[str]], small: dict[str, list[str]], found: Findings) -> None:
    listed = [
        ("minimum_image_size", "images smaller than `minimum_image_size`", below, "lower it, remove the files"),
        ("resolution", "files smaller than what is trained", small, "lower `resolution`, remove the files"),
    ]
    if holds_sound(images.block):
        listed = [("duration", "files shorter than what is trained", small, "lower it, remove the files")]
    for key, what, stems, remedy in listed:
        names = [name for each in stems.values() for name in each]
        if names and images.block["small_images"] == "leave_out":
            found.notes.append(f"{images.id}: {count(len(stems), 'image')} left out, {what}: {some(names)}")
        elif key == "resolution":
            remedy = f"{remedy}, set `allow_upscale` to true, or `small_images` to 'leave_out'"
            found.listing(f"{images.path}.{key}", names, what, remedy)
        else:
            found.listing(f"{images.path}.{key}", names, what, f"{remedy}, or set `small_images` to 'leave_out'")


def _enlarged(picture: Picture | None, geometry: Geometry) -> bool:
    return picture is not None and geometry.enlarges(picture.width, picture.height)


def _too_small(data: DataSet, stem: str, geometry: Geometry) -> str:
    needed = f"{geometry.width}x{geometry.height}"
    if data.images[stem].sound is not None:
        needed = f"{geometry.width:,} samples"
    return f"{stem} of {data.id!r} ({data.images[stem].size}, needed for {needed})"


def warn_of_orphans(links: dict[int, tuple[int, ...]], sets: list[DataSet], found: Findings) -> None:
    """Warn of files in a conditioning set that belong to no image of its image sets."""
    wanted: dict[int, set[str]] = defaultdict(set)
    for i, linked in links.items():
        for j in linked:
            wanted[j] |= sets[i].images.keys() | sets[i].unusable
    for j, stems in wanted.items():
        orphans = [stem for stem in sets[j].images if stem not in stems]
        if orphans:
            found.warnings.append(f"{sets[j].id}: {count(len(orphans), 'file')} without an image: {some(orphans)}")


def same_sides(record: Record) -> bool:
    """Return whether the rejected side is the preferred one, byte by byte."""
    return record.rejected is not None and record.rejected.digest == record.image.digest


def warn_of_twins(records: Iterable[Record], found: Findings) -> None:
    """Warn of pairs whose two sides are the same."""
    pairs: dict[str, dict[str, bool]] = defaultdict(dict)
    for record in records:
        if record.rejected is not None:
            pairs[record.dataset].setdefault(record.key, False)
            pairs[record.dataset][record.key] |= same_sides(record)
    for name, of_set in pairs.items():
        if same := [key for key, twins in of_set.items() if twins]:
            found.warnings.append(
                f"{name}: {SAME} ({len(same):,} of {count(len(of_set), 'pair')}): {some(same)}; such a pair teaches "
                "nothing: correct its rejected side, or remove it"
            )


def is_loose(data: DataSet) -> bool:
    return data.block["conditioning_type"] == LOOSE


def loose_cuts(
    images: DataSet, partner: DataSet, geometries: Mapping[str, Geometry], found: Findings
) -> dict[str, Geometry]:
    """Return stem -> how the partner is cut, to the size of its image, for the pairs that exist.

    Images without a partner are noted: they are left out of pairs with this set. No partner at all is a problem, and so
    is a partner that would be enlarged, unless the image set's block allows that or leaves small images out.
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
    sizing = sizing_of(images)
    for stem, geometry in geometries.items():
        if (other := partner.images.get(stem)) is None:
            continue
        target, scale = (geometry.width, geometry.height), sizing.scale(other.width, other.height)
        own = plan_geometry(other.width, other.height, target, images.block["crop"], stem, scale=scale)
        if own.enlarges(other.width, other.height) and not images.block["allow_upscale"]:
            small.append(_too_small(partner, stem, own))
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
