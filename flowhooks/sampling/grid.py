"""Pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

GAP = 2


def picture_grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows of ``columns``, on white, each cell the size of the largest.

    Raises:
        ValueError: no pictures, or no columns.
    """
    if not pictures or columns < 1:
        raise ValueError(f"a grid needs at least one picture and one column, got {len(pictures)} and {columns}")
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    grid = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for i, picture in enumerate(pictures):
        grid.paste(picture.convert("RGB"), (i % columns * (width + GAP), i // columns * (height + GAP)))
    return grid
