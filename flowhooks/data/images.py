"""Open image files: which formats, how, and up to which size. AVIF and HEIC begin like video files, but are images."""

from __future__ import annotations

import re
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
#: Brands that stand for a still image and name no codec.
_STILL = (b"mif1", b"msf1")


class BadImage(Exception):
    """The file is not an image that flowhooks can train on; the message says why."""


@contextmanager
def decoding() -> Iterator[None]:
    """Decode without warnings inside the block; any exception becomes a BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadImage:
        raise
    except Exception as error:  # a decoder may raise anything on damaged bytes
        raise BadImage(f"cannot be decoded ({cause(error)})") from None


def cause(error: Exception) -> str:
    """Return what a decoder says is wrong, without the object in memory that it names in place of a file: the caller
    names the file."""
    return re.sub(r"\s*'?<_io\.[^>]*>'?", "", str(error)).strip() or type(error).__name__


def still_of(data: bytes) -> str | None:
    """Return ``AVIF`` or ``HEIC`` for the bytes of such an image, None for others."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4]), 4096)
    major = data[8:12]
    brands = (major, *(data[at : at + 4] for at in range(16, end, 4)))
    # A video may name an image's brand among those that it is compatible with, but not as its own.
    if major not in (*_AVIF, *_HEIC, *_STILL):
        return None
    return AVIF if any(each in _AVIF for each in brands) else HEIC


def missing_bytes(data: bytes) -> tuple[int, int] | None:
    """Return how many bytes a cut-off file has and how many its boxes declare; None if it is complete."""
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
    """Open a HEIC image without decoding it; pillow-heif turns it upright. Needs pillow-heif, see
    :func:`reads_heic`."""
    from pillow_heif import HeifImageFile

    return cast(Image.Image, HeifImageFile(BytesIO(data)))


def reads_heic() -> bool:
    """Return whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def open_image(data: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image without decoding it. Raises BadImage for a HEIC that cannot be read here, and whatever Pillow
    raises."""
    if still_of(data) == HEIC:
        if not reads_heic():
            raise BadImage(NEEDS_HEIF)
        return open_heic(data)
    return Image.open(BytesIO(data), formats=formats)
