"""Draw what the demo changed: the same prompts and seeds before and after, with the two numbers that say how much."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from flowhooks.digits.judge import Score
from flowhooks.files import write_aside
from flowhooks.sampling.labels import font

PAPER, INK, SOFT, LINE, ACCENT = "#fbfaf7", "#1b1c1e", "#6a6e74", "#e2e1dc", "#2456c4"
#: Pixels: around the whole, between images, between the two sides, for the words above and below, for the row's digit.
MARGIN, GAP, BETWEEN, HEAD, FOOT, ROW = 56, 4, 64, 176, 60, 34
ROWS = 10


def save_comparison(
    before: torch.Tensor,
    after: torch.Tensor,
    scores: tuple[Score, Score],
    file: Path,
    *,
    first_seed: int,
    steps: int,
    columns: int = 6,
    scale: int = 2,
) -> Path:
    """Save one row per digit: on the left samples of the base, on the right samples of the trained model from the same
    noise, each side below its blot rate and digit accuracy.

    Args:
        before, after: ``[N, 3, H, W]`` in [-1, 1], image i with the prompt of digit i mod 10; N >= 10 x ``columns``.
        scores: the judge's measurements of each side.
        first_seed: the seed of image 0; image i has the i-th after it.
        steps: optimiser steps between the two.
        columns: images of a digit on each side.
        scale: how many times an image is enlarged, per axis.

    Raises:
        OSError: the disk refuses.
    """
    cell = before.shape[-1] * scale + GAP
    side = columns * cell - GAP
    width = 2 * MARGIN + ROW + 2 * side + BETWEEN
    height = MARGIN + HEAD + ROWS * cell - GAP + FOOT + MARGIN // 2
    canvas = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(canvas)
    left, top = MARGIN + ROW, MARGIN + HEAD
    pen.text((MARGIN, MARGIN - 14), "Masked Flow-DPO on handwritten digits", fill=INK, font=font(27))
    sentence = f"The same prompts and seeds, before and after {steps:,} steps on pairs with and without a blot."
    pen.text((MARGIN, MARGIN + 24), sentence, fill=SOFT, font=font(15))
    for place, (title, score, pictures) in enumerate(zip(("before", "after"), scores, (before, after), strict=True)):
        x = left + place * (side + BETWEEN)
        _heading(pen, (x, MARGIN + 68), title, score, side, ACCENT if place else INK)
        _images(canvas, (x, top), pictures, columns, cell, scale)
    for row in range(ROWS):
        middle = top + row * cell + (cell - GAP) // 2
        pen.text((MARGIN, middle), str(row), fill=SOFT, font=font(16), anchor="lm")
    foot = (
        f"Rows: the digit of the prompt. Seeds {first_seed:,} and up, no guidance. Numbers: {scores[0].count:,} images "
        "a side, judged by a network trained on real scans."
    )
    pen.text((MARGIN, height - FOOT), foot, fill=SOFT, font=font(13))
    return write_aside(file, lambda aside: canvas.save(aside, format="PNG", optimize=True))


def _heading(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], title: str, score: Score, width: int, colour: str
) -> None:
    """Write a side's name and its two numbers."""
    x, y = place
    pen.line((x, y, x + width, y), fill=LINE, width=1)
    pen.text((x, y + 12), title, fill=SOFT, font=font(16))
    numbers = ((f"{score.blot_rate:.1%}", "have a blot"), (f"{score.digit_accuracy:.1%}", "show the digit asked for"))
    for i, (number, words) in enumerate(numbers):
        at = x + i * width * 2 // 5
        pen.text((at, y + 36), number, fill=colour if i == 0 else INK, font=font(29))
        pen.text((at, y + 72), words, fill=SOFT, font=font(14))


def _images(
    canvas: Image.Image, place: tuple[int, int], pictures: torch.Tensor, columns: int, cell: int, scale: int
) -> None:
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    side = cell - GAP
    for number in range(ROWS * columns):
        row, column = number % ROWS, number // ROWS
        enlarged = Image.fromarray(pixels[number]).resize((side, side), Image.Resampling.NEAREST)
        canvas.paste(enlarged, (place[0] + column * cell, place[1] + row * cell))
