"""Small pictures of a card: both sides as they are cut for training, and where they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from flowhooks.data.geometry import Geometry
from flowhooks.data.images import BadImage
from flowhooks.data.inspection import Picture
from flowhooks.data.masks import BLACK, dimness
from flowhooks.data.transform import load_mask, load_pixels
from flowhooks.gallery.cards import Card

SIDE = 256
MASK_RGB = (214, 0, 110)
#: Opacity of the veil, of 255, from where a mask is just not black to where it is white.
VEIL = (26, 51)


@dataclass(frozen=True, kw_only=True)
class Thumbs:
    """Pictures of one size.

    Args:
        image: RGB.
        rejected: RGB, if there is such a side.
        mask: grey, white where it trains, if there is one that is not white all over.
        everywhere: whether there is one that is.
        problems: what came up while they were decoded.
        warnings: what is likely not meant.
    """

    image: Image.Image | None = None
    rejected: Image.Image | None = None
    mask: Image.Image | None = None
    everywhere: bool = False
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def draw(card: Card, side: int = SIDE) -> Thumbs:
    """The pictures of a card, none larger than `side`; what cannot be decoded is left out and told."""
    problems: list[str] = []
    shown: list[Image.Image | None] = []
    own = card.rejected_geometry or card.geometry
    for picture, kind, geometry in ((card.image, "image", card.geometry), (card.rejected, "rejected side", own)):
        try:
            shown.append(None if picture is None else _pixels(picture, _small(geometry, picture, side)))
        except (BadImage, OSError) as error:
            problems.append(f"the {kind} {error}")
            shown.append(None)
    mask, everywhere = None, False
    warnings: list[str] = []
    if card.masks:
        try:
            values = _multiplied(card.masks, _small(card.geometry, card.image or card.masks[0], side))
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
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def overlay(mask: Image.Image) -> Image.Image:
    """RGBA to lay on a picture: a veil where the mask is not black, and a line around what is bright in it.

    Bright is at least half of what its brightest place is, so that a mask of one grey has a line like a white one.
    """
    values = np.asarray(mask)
    bright = values >= max(1, (int(values.max()) + 1) // 2)
    deep = bright
    for _ in range(max(1, max(bright.shape) // 128)):
        wide = np.pad(deep, 1, mode="edge")
        deep = wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    least, most = VEIL
    veil = np.where(values > 0, least + values.astype(int) * (most - least) // 255, 0)
    opacity = np.where(bright & ~deep, 255, veil)
    shown = np.zeros((*values.shape, 4), dtype=np.uint8)
    shown[opacity > 0, :3] = MASK_RGB
    shown[..., 3] = opacity
    return Image.fromarray(shown)


def _small(geometry: Geometry | None, picture: Picture, side: int) -> Geometry:
    whole = geometry or Geometry(width=picture.width, height=picture.height)
    scale = min(1.0, side / max(whole.width, whole.height))
    return replace(whole, width=max(1, round(whole.width * scale)), height=max(1, round(whole.height * scale)))


def _pixels(picture: Picture, geometry: Geometry) -> Image.Image:
    pixels = load_pixels(picture.asset.read(), geometry).transpose(1, 2, 0)
    return Image.fromarray(np.rint((pixels + 1) * 127.5).astype(np.uint8))


def _multiplied(masks: Sequence[Picture], geometry: Geometry) -> np.ndarray:
    values = np.ones((geometry.height, geometry.width), dtype=np.float32)
    for mask in masks:
        values *= load_mask(mask.asset.read(), geometry, geometry.height, geometry.width, labels=mask.labels)[0]
    return values
