"""Still pictures in the containers of the MP4 family: AVIF and HEIC. They begin like a video file, and are none."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from typing import cast

from PIL import Image

AVIF, HEIC = "AVIF", "HEIC"
NEEDS_HEIF = "is a HEIC image, which needs pillow-heif; run `pip install 'flowhooks[heic]'`"
_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
#: Brands that say "a still picture" and not of which codec.
_STILL = (b"mif1", b"msf1")


def still_of(data: bytes) -> str | None:
    """``AVIF`` or ``HEIC`` for the bytes of such a picture, None for others."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4]), 4096)
    major = data[8:12]
    brands = (major, *(data[at : at + 4] for at in range(16, end, 4)))
    # A video may name a picture's brand among those that it is compatible with, but not as its own.
    if major not in (*_AVIF, *_HEIC, *_STILL):
        return None
    return AVIF if any(each in _AVIF for each in brands) else HEIC


def missing_bytes(data: bytes) -> tuple[int, int] | None:
    """How many bytes are there and how many the boxes declare, of a file that is cut off; None if it is whole."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
        if size == 0:  # to the end of the file
            return None
        at += max(size, 8)
    return (len(data), at) if at > len(data) else None


def open_heic(data: bytes) -> Image.Image:
    """A HEIC picture, not decoded yet; it is upright by itself. ``find_spec("pillow_heif")`` says if that can be."""
    from pillow_heif import HeifImageFile

    return cast(Image.Image, HeifImageFile(BytesIO(data)))


def reads_heic() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None
