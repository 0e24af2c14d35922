"""Take the images out of a run's validation grids, small enough for a page."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from flowhooks.manifest import VALIDATION
from flowhooks.sampling.labels import Cell, cell_image, read_cells

#: On a page: the most steps, the most images of a step, and the longest side in pixels.
STEPS, CELLS, SIDE = 24, 16, 640
#: Images of at most this many pixels per side are kept as they are, and shown with sharp pixels.
TINY = 96
QUALITY = 84
_GRID = re.compile(r"step_(\d{1,12})\.png")
#: (file, when it was written, its bytes) -> its images.
Kept = dict[tuple[str, int, int], "Grid | None"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Holds the images of one validation.

    Args:
        cells: what each shows; empty for a grid of an older version, which is one image.
        images: their ``data:`` URLs.
        sizes: width and height of each before it was made smaller, in pixels.
        left_out: number of images that are not shown.
    """

    cells: tuple[Cell, ...]
    images: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class DrawnImages:
    """Holds the images of a run, step by step.

    Args:
        grids: (step, images), rising.
        of: number of validations with images.
        damaged: names of grids that cannot be read.
    """

    grids: tuple[tuple[int, Grid], ...] = ()
    of: int = 0
    damaged: tuple[str, ...] = ()


def read_pictures(folder: Path, kept: Kept) -> DrawnImages:
    """Read the images of a run's folder; of many validations the first, the last and those evenly between.

    Args:
        kept: images that were read before, which are not read again; afterwards those that are shown.
    """
    files = dict(sorted(_files(folder / VALIDATION)))
    grids, damaged, known = [], [], dict(kept)
    kept.clear()
    for step in spread(list(files), STEPS):
        file = files[step]
        about = file.stat()
        key = (str(file), about.st_mtime_ns, about.st_size)
        try:
            found = known[key] if key in known else _grid(file)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            found = None
        kept[key] = found
        if found is None:
            damaged.append(file.name)
        else:
            grids.append((step, found))
    return DrawnImages(grids=tuple(grids), of=len(files), damaged=tuple(damaged))


def spread(items: Sequence[int], most: int) -> list[int]:
    """Return at most ``most`` of these, the first, the last, and those evenly between: every second, fourth, eighth and
    so on, so that the choice stays much the same while there come more."""
    apart = 1
    while 1 + -(-(len(items) - 1) // apart) > most:
        apart *= 2
    return [*items[:-1:apart], *items[-1:]]


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    for file in folder.iterdir() if folder.is_dir() else ():
        if (named := _GRID.fullmatch(file.name)) and file.is_file() and not file.is_symlink():
            yield int(named[1]), file


def _grid(file: Path) -> Grid:
    with Image.open(file, formats=("PNG",)) as opened:
        image = opened.convert("RGB")
        cells = read_cells(opened)
    shown = cells[:CELLS]
    parts = [cell_image(image, cell) for cell in shown] or [image]
    return Grid(
        cells=shown,
        images=tuple(map(_url, parts)),
        sizes=tuple(part.size for part in parts),
        left_out=len(cells) - len(shown),
    )


def _url(part: Image.Image) -> str:
    file, tiny = BytesIO(), max(part.size) <= TINY
    options: dict[str, Any] = {"format": "PNG"} if tiny else {"format": "WEBP", "quality": QUALITY, "method": 2}
    if not tiny:
        part = part.copy()
        part.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    part.save(file, **options)
    return f"data:image/{options['format'].lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
