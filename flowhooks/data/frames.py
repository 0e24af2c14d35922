"""Choose the frames of a video that are trained on, and check that its partners have them too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowhooks.data.blocks import MASK_TYPES, REJECTED_TYPES, SOUNDING, holds_sound
from flowhooks.data.clips import select
from flowhooks.data.findings import Findings
from flowhooks.data.geometry import stable_hash
from flowhooks.data.records import DataSet


def propagate_num_frames(
    blocks: Sequence[dict[str, Any]], links: Mapping[int, Sequence[int]], found: Findings
) -> list[dict[str, Any]]:
    """Return the blocks, with `num_frames` of the image set copied to each `reference_strict` set that belongs to it,
    and the rejected sides of sound marked as sound."""
    completed = [dict(block) for block in blocks]
    for i, linked in links.items():
        for j in linked:
            own, wanted = blocks[j]["num_frames"], blocks[i]["num_frames"]
            if own not in (1, wanted):
                message = f"is {own:,}, that of {blocks[i]['id']!r} is {wanted:,}; leave it out here"
                found.problem(f"{found.at(j)}.num_frames", message)
            completed[j][SOUNDING] = holds_sound(blocks[i]) and blocks[j]["conditioning_type"] in REJECTED_TYPES
            if blocks[j]["conditioning_type"] in REJECTED_TYPES:
                completed[j]["num_frames"] = max(completed[j]["num_frames"], wanted)
            elif own > 1:
                what = (
                    "a mask is one image for all frames"
                    if blocks[j]["conditioning_type"] in MASK_TYPES
                    else ("a reference is one image")
                )
                found.problem(f"{found.at(j)}.num_frames", f"is for videos, and {what}")
    return completed


def plan_frames(images: DataSet, partners: Sequence[DataSet], found: Findings) -> dict[str, tuple[int, ...]]:
    """Return stem -> positions of the frames that are kept, for image and rejected side alike; none for images.

    A video with too few frames is a problem: no frame is used twice to make up for it.
    """
    block = images.block
    count = block["num_frames"]
    if count == 1:
        return dict.fromkeys(images.images, ())
    shown: dict[str, tuple[int, ...]] = {}
    short, apart = [], []
    sides = [each for each in partners if each.block["conditioning_type"] in REJECTED_TYPES]
    for stem, picture in images.images.items():
        if picture.frames < count:
            short.append(f"{stem} ({picture.frames:,})")
            continue
        shown[stem] = select(picture.frames, count, block["frame_selection"], stable_hash(f"{stem}/t"))
        others = [each for each in sides if stem in each.images and each.images[stem].frames != picture.frames]
        apart += [f"{stem} of {each.id!r} ({each.images[stem].frames:,}, not {picture.frames:,})" for each in others]
    where = f"{images.path}.num_frames"
    remedy = "lower `num_frames`, or remove these files; no frame is used twice"
    found.listing(where, short, f"videos with fewer than {count:,} frames", remedy)
    remedy = "cut them like the videos they belong to"
    found.listing(where, apart, "rejected sides with another number of frames", remedy)
    if shown:
        found.notes.append(_frames_in_words(images, shown))
    return shown


def _frames_in_words(images: DataSet, shown: Mapping[str, Sequence[int]]) -> str:
    block = images.block
    numbers = [images.images[stem].frames for stem in shown]
    rates = [rate for stem in shown if (rate := images.images[stem].rate) is not None]
    lengths = f"{min(numbers):,}" if min(numbers) == max(numbers) else f"{min(numbers):,} to {max(numbers):,}"
    line = f"{images.id}: videos of {lengths} frames"
    if rates:
        line += f" at {min(rates):.3g}" + ("" if min(rates) == max(rates) else f" to {max(rates):.3g}") + " a second"
    return f"{line}; {block['num_frames']:,} are trained on, {block['frame_selection']!r}"
