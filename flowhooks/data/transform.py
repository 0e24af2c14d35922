"""Turn image files into pixels and masks, cut by one Geometry. Uses Pillow and NumPy only."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from flowhooks.data.clips import frames_of, moves
from flowhooks.data.colors import eight_bit, to_rgb
from flowhooks.data.geometry import Geometry
from flowhooks.data.images import MAX_PIXELS, BadImage, decoding, open_image

#: Modes whose stored numbers can be compared with 0 directly.
STORED = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16B", "I;16L")


def open_upright(data: bytes) -> Image.Image:
    """Decode an image and apply its EXIF orientation. Raises BadImage if it cannot be decoded."""
    with decoding():
        image = open_image(data)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"has more than {MAX_PIXELS:,} pixels")
        image.load()
        return ImageOps.exif_transpose(image)


def load_pixels(data: bytes, geometry: Geometry) -> np.ndarray:
    """Turn image bytes into float32 `[3, H, W]` in [-1, 1], in sRGB; for a video, the first frame that is kept, or its
    first.

    Transparent parts become white. Raises BadImage.
    """
    with decoding():
        return _pixels(_first(data, geometry.shown), geometry)


def load_clip(data: bytes, geometry: Geometry) -> np.ndarray:
    """Turn the kept frames of a video into float32 `[3, F, H, W]`, each like an image. Raises BadImage."""
    with decoding():
        return np.stack([_pixels(frame, geometry) for frame in frames_of(data, geometry.shown)], axis=1)


def load_picture(data: bytes, geometry: Geometry | None) -> Image.Image:
    """Return image bytes as an RGB image in sRGB, cut if there is a geometry; of a video, the first frame that is kept,
    or its first. Transparent parts become white. Raises BadImage."""
    with decoding():
        return _shown(_first(data, geometry.shown if geometry is not None else ()), geometry)


def _first(data: bytes, shown: tuple[int, ...]) -> Image.Image:
    return next(frames_of(data, shown[:1] or (0,))) if shown or moves(data) else open_upright(data)


def _shown(upright: Image.Image, geometry: Geometry | None) -> Image.Image:
    image = _flatten(to_rgb(upright), background=255).convert("RGB")
    if geometry is None:
        return image
    return _cut(image, geometry, (geometry.width, geometry.height), Image.Resampling.LANCZOS)


def _pixels(upright: Image.Image, geometry: Geometry) -> np.ndarray:
    cut = _shown(upright, geometry)
    return np.asarray(cut, dtype=np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)


def load_mask(data: bytes, geometry: Geometry, height: int, width: int, *, labels: bool = False) -> np.ndarray:
    """Turn mask bytes into float32 `[1, height, width]` in [0, 1], each cell the mean of its area: white trains, grey
    weighs.

    Transparent parts of a mask count as black. A colour profile is not applied: the numbers are weights, not colours.

    Args:
        labels: every value but 0 is white; see :func:`mask_levels`.

    Raises BadImage.
    """
    with decoding():
        image = mask_levels(data, labels=labels).convert("F")
        cut = _cut(image, geometry, (width, height), Image.Resampling.BOX)
        return np.clip(np.asarray(cut, dtype=np.float32) / np.float32(255), 0, 1)[None]


def mask_levels(data: bytes, *, labels: bool = False) -> Image.Image:
    """Return a mask as it is read, upright: ``L``, 255 where it trains fully and 0 where it does not.

    Args:
        labels: read stored values as labels (with a palette, the index and not its colour): 0 stays 0, every
            other one becomes 255. In a file in colour, black is 0.

    Raises BadImage.
    """
    with decoding():
        image = open_upright(data)
        if not labels:
            return _flatten(eight_bit(image), background=0).convert("L")
        held = image.getchannel("P") if image.mode == "PA" else image if image.mode in STORED else image.convert("RGB")
        stored = np.asarray(held)
        if held.mode in ("LA", "RGBA"):
            stored = stored[..., :-1]
        inside = stored.reshape(*stored.shape[:2], -1).any(-1)
        if image.has_transparency_data:
            inside &= np.asarray(image.convert("RGBA").getchannel("A")) > 0
        return Image.fromarray(inside.astype(np.uint8) * 255)


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
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (background,) * 3 + (255,)), rgba)
