"""The contact sheet: the first cards as one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from flowhooks.gallery.cards import Card
from flowhooks.gallery.thumbs import Thumbs, overlay

CELL = 160
GAP = 12
LABEL = 20
ACROSS = 4
MOST = 48
INK = {"problem": (179, 38, 30), "warning": (133, 83, 0), "fine": (60, 62, 66)}


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def sheet(cards: Sequence[tuple[Card, Thumbs]]) -> Image.Image:
    """Up to 48 cards, four in a row: sides with the mask tinted in, and the key below."""
    shown = cards[:MOST]
    sides = 2 if any(card.paired for card, _ in shown) else 1
    across = ACROSS if sides == 2 else 2 * ACROSS
    rows = [shown[i : i + across] for i in range(0, len(shown), across)]
    wide = sides * CELL + GAP
    canvas = Image.new("RGB", (GAP + across * wide, GAP + max(1, len(rows)) * (CELL + LABEL + GAP)), (246, 246, 244))
    brush, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for row, members in enumerate(rows):
        for column, (card, thumbs) in enumerate(members):
            left, top = GAP + column * wide, GAP + row * (CELL + LABEL + GAP)
            for side, picture in enumerate((thumbs.image, thumbs.rejected)[:sides]):
                if picture is not None:
                    _paste(canvas, picture, thumbs.mask, left + side * CELL, top)
            label = _fitting(brush, card.key, font, wide - GAP)
            brush.text((left, top + CELL + 3), label, fill=INK[card.state], font=font)
    return canvas


def _paste(canvas: Image.Image, picture: Image.Image, mask: Image.Image | None, left: int, top: int) -> None:
    scale = CELL / max(picture.size)
    small = picture.width < CELL and picture.height < CELL
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    corner = left + (CELL - size[0]) // 2, top + (CELL - size[1]) // 2
    canvas.paste(picture.resize(size, how), corner)
    if mask is not None:
        veil = overlay(mask.resize(size, how))
        canvas.paste(veil, corner, veil)


def _fitting(
    brush: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int
) -> str:
    """The end of the text, where names of one folder differ."""
    # A name may hold a line break, which no line of text can.
    text = "".join(each if each.isprintable() else "?" for each in text.encode("ascii", "replace").decode())
    if brush.textlength(text, font) <= room:
        return text
    while text and brush.textlength(f"...{text}", font) > room:
        text = text[1:]
    return f"...{text}"
