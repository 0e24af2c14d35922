"""Draw a grid of images with a label below each, and read the images out of such a file again. Free of torch."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from flowhooks.reading import parse

#: Of the text in a PNG's header that says where its images are.
KEY = "flowhooks"
#: Pixels: the least width of an image in a grid, the margin around it, and around the whole.
LEAST, GAP, EDGE = 144, 12, 16
INK, SOFT, PAPER = "#1c1d1f", "#5c6066", "#ffffff"
TEXT, HEAD = 13, 15
#: Lines of a prompt below an image.
LINES = 2
#: Letters that the font lacks and that have no simpler form in Unicode.
_SPELLED = str.maketrans({"ß": "ss", "–": "-", "—": "-", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "ł": "l", "đ": "d"})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Describes one image of a grid.

    Args:
        prompt: what it was generated from.
        seed: of its noise.
        steps: sampling steps.
        box: left, top, width and height of the image in the file, in pixels.
        scale: how many times it is enlarged there, per axis.
    """

    prompt: str
    seed: int
    steps: int
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    scale: int = 1


@dataclass(frozen=True, kw_only=True)
class LabelledGrid:
    """Holds a grid and what is in it; ``cells`` are in reading order."""

    image: Image.Image
    step: int
    cells: tuple[Cell, ...]

    def save(self, file: Path) -> None:
        """Write a PNG whose header says where each image is, and what it shows."""
        told = PngImagePlugin.PngInfo()
        about = {"step": self.step, "cells": [asdict(cell) for cell in self.cells]}
        told.add_text(KEY, json.dumps(about))
        self.image.save(file, format="PNG", pnginfo=told)


def labelled_grid(pictures: Sequence[Image.Image], cells: Sequence[Cell], *, columns: int, step: int) -> LabelledGrid:
    """Arrange images in rows of ``columns`` below a line that names the optimiser step; prompt, seed and sampling steps
    stand below each.

    Small images are enlarged by a whole number, so that the label fits and each pixel stays what it is. A prompt that
    the font has no letters for is named by its number.

    Raises:
        ValueError: no images, no columns, or not one cell for each image.
    """
    if not pictures or columns < 1 or len(pictures) != len(cells):
        raise ValueError(f"a grid needs images, columns and a cell for each, got {len(pictures)} and {columns}")
    columns = min(columns, len(pictures))
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    scale = max(1, -(-LEAST // width))
    width, height = width * scale, height * scale
    line, head = line_height(TEXT), line_height(HEAD) + GAP
    below = line * (LINES + 1) + 8
    rows = -(-len(pictures) // columns)
    size = (
        2 * EDGE + columns * (width + GAP) - GAP,
        EDGE + head + rows * (height + below + GAP),
    )
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((EDGE, EDGE), f"step {step:,}", fill=INK, font=font(HEAD))
    prompts = list(dict.fromkeys(cell.prompt for cell in cells))
    placed = []
    for i, (picture, cell) in enumerate(zip(pictures, cells, strict=True)):
        left, top = EDGE + i % columns * (width + GAP), EDGE + head + i // columns * (height + below + GAP)
        shown = picture.convert("RGB")
        if scale > 1:
            shown = shown.resize((shown.width * scale, shown.height * scale), Image.Resampling.NEAREST)
        canvas.paste(shown, (left, top))
        placed.append(replace(cell, box=(left, top, *shown.size), scale=scale))
        words = drawable(cell.prompt) or f"prompt {prompts.index(cell.prompt) + 1}"
        about = f"seed {cell.seed:,}, {cell.steps:,} {'step' if cell.steps == 1 else 'steps'}"
        told = [*((text, INK) for text in wrapped(words, width, LINES)), (about, SOFT)]
        for number, (text, colour) in enumerate(told):
            pen.text((left, top + height + 5 + number * line), text, fill=colour, font=font(TEXT))
    return LabelledGrid(image=canvas, step=step, cells=tuple(placed))


def read_cells(image: Image.Image) -> tuple[Cell, ...]:
    """Return what a grid's header says of its images; nothing for a file of another kind, or of an older version."""
    told = image.info.get(KEY)
    try:
        found: Any = parse(told) if isinstance(told, str) else {}
        cells = [Cell(**{**each, "box": tuple(each["box"])}) for each in found.get("cells", ())]
    except (ValueError, TypeError, KeyError, AttributeError):
        return ()
    return tuple(cells) if all(_is_sound(cell, image.size) for cell in cells) else ()


def cell_image(image: Image.Image, cell: Cell) -> Image.Image:
    """Return one image of a grid at its own size: each of its pixels stands there as a block of equal ones."""
    left, top, width, height = cell.box
    part = image.crop((left, top, left + width, top + height))
    size = (max(1, width // cell.scale), max(1, height // cell.scale))
    return part if cell.scale == 1 else part.resize(size, Image.Resampling.NEAREST)


def wrapped(text: str, width: int, lines: int) -> list[str]:
    """Break a text into at most ``lines`` lines of ``width`` pixels; what does not fit ends in an ellipsis."""
    drawn = font(TEXT)
    found: list[str] = []
    words = " ".join(text.split())
    while words and len(found) < lines:
        fitting = _fitting(words, width)
        if fitting == len(words):
            return [*found, words]
        if len(found) == lines - 1:
            while fitting and drawn.getlength(words[:fitting].rstrip() + "…") > width:
                fitting -= 1
            return [*found, words[:fitting].rstrip() + "…"]
        at = words.rfind(" ", 0, fitting + 1)
        cut = at if at > 0 else max(1, fitting)
        found.append(words[:cut])
        words = words[cut:].lstrip()
    return found


@cache
def font(size: int) -> Any:
    """Return Pillow's own font, so that no file of the system is needed."""
    return ImageFont.load_default(size)


def line_height(size: int) -> int:
    """Return the pixels from one line of text to the next."""
    return round(size * 1.35)


def drawable(text: str) -> str:
    """Return a text in letters that the font has, without their accents where it lacks those; an empty one where it
    has no letters for it."""
    spelled = unicodedata.normalize("NFKD", text.translate(_SPELLED))
    plain = "".join(letter for letter in spelled if not unicodedata.combining(letter))
    for candidate in (text, plain):
        if all(_has(letter) for letter in set(candidate) if not letter.isspace()):
            return candidate
    return ""


@cache
def _has(letter: str) -> bool:
    drawn = font(TEXT)
    missing = [bytes(drawn.getmask(each)) for each in ("\uffff", "\U000f0000")]
    return bytes(drawn.getmask(letter)) not in missing


def _fitting(words: str, width: int) -> int:
    """Return how many characters fit."""
    drawn = font(TEXT)
    low, high = 0, min(len(words), 4 * width)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if drawn.getlength(words[:middle]) <= width else (low, middle - 1)
    return low


def _is_sound(cell: Cell, size: tuple[int, int]) -> bool:
    numbers = (cell.seed, cell.steps, cell.scale, *cell.box)
    if len(cell.box) != 4 or not isinstance(cell.prompt, str) or not all(type(each) is int for each in numbers):
        return False
    left, top, width, height = cell.box
    inside = left >= 0 and top >= 0 and left + width <= size[0] and top + height <= size[1]
    return inside and width > 0 and height > 0 and cell.scale > 0
