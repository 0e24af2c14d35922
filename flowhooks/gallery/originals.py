"""Draw the files of a card whole, to be looked at closely: uncut, with the box that is cut out of them for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from flowhooks.data.geometry import Geometry
from flowhooks.data.images import BadImage
from flowhooks.data.inspection import Picture
from flowhooks.data.transform import load_picture
from flowhooks.gallery.cards import Card
from flowhooks.gallery.waves import wave_picture

#: Pages of so many files at most -> the longer edge at which each is kept, so that no page is larger than some 20 MB.
EDGES = ((60, 1280), (250, 896), (10**9, 640))
Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Original:
    """Holds one file of a sample as it is.

    Args:
        side: which one it is: `image`, `rejected`, or `reference` with its number.
        picture: RGB, uncut, no larger than the edge that was asked for.
        box: left, top, right, bottom of what is cut out, as fractions in [0, 1].
        about: the file, its size, and the size that it is trained at.
    """

    side: str
    picture: Image.Image
    box: Box
    about: str


def edge_for(files: int) -> int:
    """Return the longer edge at which each of so many files is kept."""
    return next(edge for most, edge in EDGES if files <= most)


def originals(card: Card, edge: int) -> tuple[Original, ...]:
    """Return the files of a card that can be decoded, none larger than `edge`."""
    found = []
    for side, picture, geometry in _files(card):
        try:
            if picture.sound is not None:
                whole = wave_picture(picture, None, edge)
            else:
                whole = load_picture(picture.asset.read(), None)
        except (BadImage, OSError):
            # The card says so.
            continue
        whole.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        size = "" if geometry is None else f", trained at {trained_size(picture, geometry)}"
        about = f"{picture.asset.name}: {picture.size}{size}"
        box = WHOLE if geometry is None else geometry.box
        found.append(Original(side=side, picture=whole, box=box, about=about))
    return tuple(found)


def trained_size(picture: Picture, geometry: Geometry) -> str:
    """Return the size that a file is trained at, in words."""
    if picture.sound is not None:
        return f"{geometry.width / picture.sound.rate:g} s"
    return f"{geometry.width}x{geometry.height}"


def _files(card: Card) -> Iterator[tuple[str, Picture, Geometry | None]]:
    if card.image is not None:
        yield "image", card.image, card.geometry
    if card.rejected is not None:
        yield "rejected", card.rejected, card.rejected_geometry or card.geometry
    for number, (picture, geometry) in enumerate(card.references):
        yield f"reference {number}", picture, geometry
