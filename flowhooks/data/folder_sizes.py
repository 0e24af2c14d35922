"""Choose the size and the number of frames at which the images or videos of a folder are trained. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowhooks.data.assets import FileAsset
from flowhooks.data.geometry import plan_geometry
from flowhooks.data.images import BadImage
from flowhooks.data.inspection import Picture, inspect_image
from flowhooks.data.sizing import Sizing

#: Edges in pixels of squares of as many pixels as what is trained; the largest that the files reach is chosen.
EDGES = (1024, 896, 768, 640, 512, 384, 256, 192, 128, 96, 64, 48, 32, 16)
#: Largest of these for videos, each of which has many frames.
OF_VIDEOS = 640
#: Edges of buckets are multiples of this, those of small ones of the second.
MULTIPLE, FINE = 64, 16
#: Most frames of a video.
FRAMES = 81
#: Share of the files that may be left out for their size, where that makes the others twice as large along an edge;
#: one may be where there are so many files.
FEW, SEVERAL = 0.1, 4


def sizes_of(
    pictures: Sequence[Picture], *, moving: bool, most: int | None = None, multiple: int = 1
) -> dict[str, Any]:
    """Return the keys of a data set block that determine the size and the frames of its samples.

    Args:
        pictures: images or videos, with those of the rejected side.
        moving: whether they are videos, also where none of them could be read.
        most: edge of a square of as many pixels as are wanted at most; None: :data:`EDGES` alone say.
        multiple: what edges must be a multiple of, in pixels.
    """
    frames = min((each.frames for each in pictures), default=1)
    moving = moving or frames > 1
    counted = {"num_frames": frames_within(frames)} if moving else {}
    largest = min(most or EDGES[0], OF_VIDEOS if moving else EDGES[0])
    return {**counted, **(_resolution(pictures, largest, multiple) if pictures else {})}


def frames_within(least: int) -> int:
    """Return the most frames, of :data:`FRAMES` and of what is there, that are one more than a multiple of 8, which
    pipelines that halve the frames three times need and others take; 5 where there are fewer than 9."""
    if least < 9:
        return 5
    return (min(least, FRAMES) - 1) // 8 * 8 + 1


def _resolution(pictures: Sequence[Picture], most: int, multiple: int) -> dict[str, Any]:
    sizes = {(each.width, each.height) for each in pictures}
    if len(sizes) == 1:
        width, height = sizes.pop()
        step = math.lcm(FINE, multiple)
        if width * height <= most**2 and width % step == height % step == 0:
            return {}
    reached = {edge: _reaching(pictures, edge, multiple) for edge in EDGES if edge <= most}
    every = next((edge for edge, reaching in reached.items() if reaching == len(pictures)), None)
    spare = max(int(FEW * len(pictures)), len(pictures) >= SEVERAL)
    nearly = next((edge for edge, reaching in reached.items() if reaching >= len(pictures) - spare), None)
    if nearly is not None and (every is None or nearly >= 2 * every):
        return {**bucket_keys(nearly, multiple), "small_images": "leave_out"}
    return {} if every is None else bucket_keys(every, multiple)


def bucket_keys(edge: int, multiple: int) -> dict[str, Any]:
    """Return the keys of a block for buckets of as many pixels as a square of an edge."""
    fine = FINE if edge < 512 else MULTIPLE
    step = math.lcm(fine, multiple)
    keys: dict[str, Any] = {"resolution": edge, "resolution_type": "pixel_area", "aspect": "bucket"}
    return keys if step == MULTIPLE else {**keys, "resolution_multiple": step}


def _reaching(pictures: Sequence[Picture], edge: int, multiple: int) -> int:
    """Return how many of the pictures need not be enlarged."""
    keys = bucket_keys(edge, multiple)
    sizing = Sizing(
        resolution=edge,
        resolution_type="pixel_area",
        aspect="bucket",
        multiple=keys.get("resolution_multiple", MULTIPLE),
        minimum=None,
    )
    number = 0
    for each in pictures:
        cut = plan_geometry(each.width, each.height, sizing.target(each.width, each.height), "center", "")
        number += not cut.enlarges(each.width, each.height)
    return number


def looked_at(files: Sequence[Path]) -> list[Picture]:
    """Return what is known of each file, without those that cannot be read, which the audit reports."""
    found = []
    for file in files:
        with suppress(BadImage, OSError):
            found.append(inspect_image(FileAsset(file), clips=True))
    return found
