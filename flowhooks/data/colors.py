"""Convert colours to 8-bit sRGB, whatever profile, number type or colour space a file has."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

#: Colour space of a profile -> the mode in which its pixels are passed to lcms.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB"}
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
# A profile that changes colours by no more than this, which is rounding, counts as sRGB.
_SAME = 1


class BadProfile(Exception):
    """The colour profile of a file cannot be used; the message says why."""


def profile_turns(image: Image.Image) -> bool:
    """Return whether the profile in an opened file changes the result of :func:`to_rgb`. No pixel is decoded.

    Raises BadProfile.
    """
    profile = image.info.get("icc_profile")
    return bool(profile) and _transform(profile, _fitting(image.mode)) is not None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded image to sRGB, as ``RGB``, or as ``RGBA`` where it has transparency.

    Where it has no profile, or one that cannot be used, its numbers are taken as sRGB.
    """
    profile = image.info.get("icc_profile")
    try:
        transform = _transform(profile, _fitting(image.mode)) if profile else None
    except BadProfile:
        transform = None
    image = eight_bit(image)
    if transform is None:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    turned = transform.apply(_opaque(image, transform.input_mode))
    if alpha is not None:
        turned.putalpha(alpha)
    return turned


def eight_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey to ``L``: Pillow's own conversion clips everything above 255 to white. Other images are
    returned as they are."""
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(np.rint(np.clip(levels, 0, 255)).astype(np.uint8))


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in a mode without transparency; hidden colours stay as they are."""
    if image.mode == mode:
        return image
    if image.has_transparency_data and mode != "RGB":
        image = image.convert("RGBA")
    return image.convert("RGB").convert(mode) if image.mode in ("P", "PA") else image.convert(mode)


def _fitting(mode: str) -> str:
    """Return the kind of colours that an image of this mode holds: ``RGB``, ``GRAY``, ``CMYK`` or ``LAB``."""
    if mode in ("1", "L", "LA", "La") or mode.startswith("I"):
        return "GRAY"
    return mode if mode in ("CMYK", "LAB") else "RGB"


@lru_cache(maxsize=16)
def _transform(profile: bytes, colours: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from the colours of a profile to sRGB; None if they are the same. Raises BadProfile."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = source.profile.xcolor_space.strip()
    except Exception as error:  # lcms and Pillow raise several kinds on damaged bytes
        raise BadProfile(f"it cannot be read ({error})") from None
    # Grey is valid for an RGB profile: some programs put one into a grey file.
    if space != colours and (space, colours) != ("RGB", "GRAY"):
        raise BadProfile(f"it is for {space or 'no'} colours, the image holds {colours}")
    mode = _MODES[space]
    try:
        made = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=_FLAGS,
        )
    except Exception as error:
        raise BadProfile(f"it does not lead to sRGB ({error})") from None
    if mode in ("RGB", "L"):
        sample = _samples(mode)
        before, after = (np.asarray(each.convert("RGB")).astype(int) for each in (sample, made.apply(sample)))
        if np.abs(before - after).max() <= _SAME:
            return None
    return made


def _samples(mode: str) -> Image.Image:
    """Return colours from all over a space."""
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    return Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3))
