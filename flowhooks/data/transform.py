"""Image files -> pixels and masks, cut by one Geometry. Pillow and NumPy only."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from flowhooks.data.clips import frames_of, moves
from flowhooks.data.geometry import Geometry
from flowhooks.data.inspection import FORMATS, MAX_PIXELS, BadImage, decoding


def open_upright(data: bytes) -> Image.Image:
    """Decode an image and apply its EXIF orientation. Raises BadImage if it cannot be decoded."""
    with decoding():
        image = Image.open(BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"has more than {MAX_PIXELS:,} pixels")
        image.load()
        return ImageOps.exif_transpose(image)


def load_pixels(data: bytes, geometry: Geometry) -> np.ndarray:
    """Image bytes -> float32 `[3, H, W]` in [-1, 1]; of a clip, the first frame that is kept, or its first.

    Transparency is laid on white. Raises BadImage.
    """
    if geometry.shown or moves(data):
        return _pixels(next(frames_of(data, geometry.shown[:1] or (0,))), geometry)
    return _pixels(open_upright(data), geometry)


def load_clip(data: bytes, geometry: Geometry) -> np.ndarray:
    """The kept frames of a clip -> float32 `[3, F, H, W]`, each like a picture. Raises BadImage."""
    return np.stack([_pixels(frame, geometry) for frame in frames_of(data, geometry.shown)], axis=1)


def _pixels(upright: Image.Image, geometry: Geometry) -> np.ndarray:
    image = _flatten(upright, background=255).convert("RGB")
    cut = _cut(image, geometry, (geometry.width, geometry.height), Image.Resampling.LANCZOS)
    return np.asarray(cut, dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)


def load_mask(data: bytes, geometry: Geometry, height: int, width: int) -> np.ndarray:
    """Mask bytes -> float32 `[1, height, width]` in [0, 1], each cell the mean of its area: white trains, grey weighs.

    Transparent parts of a mask count as black. Raises BadImage.
    """
    image = _flatten(open_upright(data), background=0).convert("L").convert("F")
    cut = _cut(image, geometry, (width, height), Image.Resampling.BOX)
    return np.clip(np.asarray(cut, dtype=np.float32) / np.float32(255), 0, 1)[None]


def _cut(image: Image.Image, geometry: Geometry, size: tuple[int, int], filter: Image.Resampling) -> Image.Image:
    left, top, right, bottom = geometry.pixels(*image.size)
    x, y, far_x, far_y = round(left), round(top), round(right), round(bottom)
    # Fractions do not come back as whole pixels exactly, and a crop of whole pixels must not be resampled.
    if max(abs(left - x), abs(top - y), abs(right - far_x), abs(bottom - far_y)) < 1e-6:
        if (far_x - x, far_y - y) == size:
            return image.crop((x, y, far_x, far_y))
        return image.resize(size, filter, box=(x, y, far_x, far_y))
    return image.resize(size, filter, box=(left, top, min(right, image.width), min(bottom, image.height)))


def _flatten(image: Image.Image, background: int) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit greyscale: Pillow's own conversion clips everything above 255 to white.
        levels = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(np.rint(np.clip(levels, 0, 255)).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (background,) * 3 + (255,)), rgba)
