"""Draw the small images of a card, both sides as they are cut for training and where they train, and the contact sheet
with the first cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flowhooks.data.geometry import Geometry
from flowhooks.data.images import BadImage
from flowhooks.data.inspection import Picture
from flowhooks.data.masks import BLACK, dimness
from flowhooks.data.transform import load_mask, load_pixels
from flowhooks.gallery.cards import Card
from flowhooks.gallery.originals import Original
from flowhooks.gallery.waves import wave_picture

SIDE = 256
MASK_RGB = (214, 0, 110)
#: Opacity of the veil, of 255, from where a mask is just not black to where it is white.
VEIL = (40, 115)
#: Length in pixels of the dashes around what is grey.
DASH = 4
#: Levels that are black or white but for rounding; the share of others from which a mask is grey; and the shares of
#: darkest and brightest pixels that are put down to edges.
BLURRED, GREYS, EDGES = (8, 247), 0.03, (0.08, 0.92)
CELL = 160
GAP = 12
LABEL = 20
ACROSS = 4
MOST = 48
INK = {"problem": (179, 38, 30), "warning": (133, 83, 0), "fine": (60, 62, 66)}
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class Thumbs:
    """Holds the images of one size.

    Args:
        image: RGB.
        rejected: RGB, if there is such a side.
        mask: grey, white where it trains; None if there is none, or it is white all over.
        everywhere: whether there is a mask that is white all over.
        references: RGB, those that could be decoded.
        originals: the files that could be decoded, uncut.
        problems: problems found while decoding.
        warnings: what is probably not meant.
    """

    image: Image.Image | None = None
    rejected: Image.Image | None = None
    mask: Image.Image | None = None
    everywhere: bool = False
    references: tuple[Image.Image, ...] = ()
    originals: tuple[Original, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def draw(card: Card, side: int = SIDE) -> Thumbs:
    """Return the images of a card, none larger than `side`; one that cannot be decoded is left out and reported."""
    problems: list[str] = []
    shown: list[Image.Image | None] = []
    own = card.rejected_geometry or card.geometry
    for picture, kind, geometry in ((card.image, "image", card.geometry), (card.rejected, "rejected side", own)):
        try:
            shown.append(None if picture is None else _pixels(picture, geometry, side))
        except (BadImage, OSError) as error:
            problems.append(f"the {kind} {error}")
            shown.append(None)
    references = []
    for picture, geometry in card.references:
        try:
            references.append(_pixels(picture, geometry, side))
        except (BadImage, OSError) as error:
            problems.append(f"the reference {error}")
    mask, everywhere = None, False
    warnings: list[str] = []
    if card.masks:
        try:
            values = _multiplied(card.masks, _small(card.geometry, card.image or card.masks[0], side))
            drawn = next((each for each in shown if each is not None), None)
            if drawn is not None and card.image is not None and card.image.sound is not None:
                # The mask of a clip is one row of weights over time.
                values = np.broadcast_to(values[:1], (drawn.height, values.shape[1]))
            everywhere = bool((values == 1).all())
            mask = None if everywhere else Image.fromarray(np.ceil(values * 255 - 1e-4).astype(np.uint8))
            if not values.any():
                warnings.append(BLACK)
            warnings += [said for each in card.masks if (said := dimness(each))]
        except (BadImage, OSError) as error:
            problems.append(f"the mask {error}")
    image, rejected = shown
    return Thumbs(
        image=image,
        rejected=rejected,
        mask=mask,
        everywhere=everywhere,
        references=tuple(references),
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def overlay(mask: Image.Image) -> Image.Image:
    """Return an RGBA image to lay over another: a veil that is denser where the mask is brighter, a line around bright
    parts, and dashes around what is not black.

    Bright means at least half of the largest brightness, so that a mask of one grey has a line like a white one.
    """
    values = np.asarray(mask)
    bright = values >= max(1, (int(values.max()) + 1) // 2)
    least, most = VEIL
    veil = np.where(values > 0, least + values.astype(int) * (most - least) // 255, 0)
    rows, columns = np.indices(values.shape)
    # A line in place of dashes where both would run, as on the softened edge of a white part.
    dashes = _rim(values > 0) & ~_grown(bright, 2 * _line(values.shape)) & ((rows + columns) // DASH % 2 == 0)
    opacity = np.where(_rim(bright) | dashes, 255, veil)
    shown = np.zeros((*values.shape, 4), dtype=np.uint8)
    shown[opacity > 0, :3] = MASK_RGB
    shown[..., 3] = opacity
    return Image.fromarray(shown)


def is_grey(mask: Image.Image) -> bool:
    """Return whether a mask has weights between 0 and 1, besides those along the edges of what is white."""
    values = np.asarray(mask)
    return bool(np.mean((values > BLURRED[0]) & (values < BLURRED[1])) > GREYS)


def weights_in_words(mask: Image.Image) -> str:
    """Return how much of an image a mask trains, and with which weights, those of its edges aside."""
    values = np.asarray(mask)
    shown = values[values > 0]
    if not len(shown):
        return "mask trains nothing"
    least, most = (f"{level / 255:.2g}" for level in np.quantile(shown, EDGES))
    weight = "" if least == "1" else f" with weight {most}" if least == most else f" with weights {least} to {most}"
    return f"mask trains {len(shown) / values.size:.0%}{weight}"


def _line(shape: tuple[int, ...]) -> int:
    """Return the width of a line in an image of a shape."""
    return max(1, max(shape) // 128)


def _rim(inside: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of a region, but none along the border of the image."""
    return np.asarray(inside & _grown(~inside, _line(inside.shape)))


def _grown(region: np.ndarray, by: int) -> np.ndarray:
    """Return a region with so many pixels more on every side."""
    for _ in range(by):
        wide = np.pad(region, 1)
        region = region | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return region


def _small(geometry: Geometry | None, picture: Picture, side: int) -> Geometry:
    whole = geometry or Geometry(width=picture.width, height=picture.height)
    scale = min(1.0, side / max(whole.width, whole.height))
    return replace(whole, width=max(1, round(whole.width * scale)), height=max(1, round(whole.height * scale)))


def _pixels(picture: Picture, geometry: Geometry | None, side: int) -> Image.Image:
    if picture.sound is not None:
        return wave_picture(picture, geometry, side)
    pixels = load_pixels(picture.asset.read(), _small(geometry, picture, side)).transpose(1, 2, 0)
    return Image.fromarray(np.rint((pixels + 1) * 127.5).astype(np.uint8))


def _multiplied(masks: Sequence[Picture], geometry: Geometry) -> np.ndarray:
    values = np.ones((geometry.height, geometry.width), dtype=np.float32)
    for mask in masks:
        values *= load_mask(mask.asset.read(), geometry, geometry.height, geometry.width, labels=mask.labels)[0]
    return values


def sheet(cards: Sequence[tuple[Card, Thumbs]]) -> Image.Image:
    """Return an image of up to 48 cards, four in a row: both sides with the mask as a tint, and the key below."""
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
    """Return the end of the text, where names of one folder differ, cut to fit."""
    # A name may hold a line break, which no line of text can.
    text = "".join(each if each.isprintable() else "?" for each in text.encode("ascii", "replace").decode())
    if brush.textlength(text, font) <= room:
        return text
    while text and brush.textlength(f"...{text}", font) > room:
        text = text[1:]
    return f"...{text}"
