"""Which image files are opened, how, and up to which size. AVIF and HEIC begin like a video file, and are none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import cast

from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")
# Pillow's own threshold for a probable decompression bomb, fixed here because a caller may have switched Pillow's off.
MAX_PIXELS = 89_478_485
AVIF, HEIC = "AVIF", "HEIC"
NEEDS_HEIF = "is a HEIC image, which needs pillow-heif; run `pip install 'flowhooks[heic]'`"
_AVIF = (b"avif", b"avis")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
#: Brands that say "a still picture" and not of which codec.
_STILL = (b"mif1", b"msf1")


class BadImage(Exception):
    """The file is not an image that flowhooks can train on; the message says why."""


@contextmanager
def decoding() -> Iterator[None]:
    """Quietly; whatever goes wrong is a BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadImage:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise BadImage(f"cannot be decoded ({error})") from None


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


def open_image(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """An image, not decoded yet. Raises BadImage for a HEIC that cannot be read here; whatever Pillow raises."""
    if still_of(data) == HEIC:
        if not reads_heic():
            raise BadImage(NEEDS_HEIF)
        return open_heic(data)
    return Image.open(BytesIO(data), formats=formats)
