"""Compute one crop box for a training image and all its partners.

The box is given as fractions of the upright image, so the same region is cut from partners of another size, and
resizing and cropping are one resampling.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Says where a sample is cut and how large the result is.

    Args:
        width: width of the result in pixels.
        height: height of the result in pixels.
        box: left, top, right, bottom of the region to keep, as fractions in [0, 1] of the upright source.
        shown: positions of the frames of a video to keep, rising; none for an image.
    """

    width: int
    height: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    shown: tuple[int, ...] = ()

    @property
    def frames(self) -> int:
        """Return the number of frames of the result; 1 for an image."""
        return len(self.shown) or 1

    @property
    def size(self) -> tuple[int, int, int]:
        """Return height, width and frames, as a model takes them."""
        return self.height, self.width, self.frames

    def pixels(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the box in pixels of a source of `width` x `height`."""
        left, top, right, bottom = self.box
        return (left * width, top * height, right * width, bottom * height)

    def enlarges(self, width: int, height: int) -> bool:
        """Return whether a source of `width` x `height` has fewer pixels in the box than the result."""
        left, top, right, bottom = self.pixels(width, height)
        # Half a pixel of slack, so that rounding does not make a partner of nearly the same aspect too small.
        return right - left < self.width - 0.5 or bottom - top < self.height - 0.5


def plan_geometry(
    width: int,
    height: int,
    target: tuple[int, int],
    crop: str,
    key: str,
    shown: tuple[int, ...] = (),
    scale: float = 0.0,
) -> Geometry:
    """Return the region of a `width` x `height` image that is trained at `target` (width, height): the largest one of
    that aspect, or one that is scaled by at least `scale`.

    `crop` is `center`, `corner` (the upper left one) or `random`, which depends on `key` only, so that it is the same
    in every run and epoch.
    """
    target_width, target_height = target
    scale = max(target_width / width, target_height / height, scale)
    kept_width, kept_height = min(target_width / scale, width), min(target_height / scale, height)
    left = _offset(width - kept_width, crop, f"{key}/x")
    top = _offset(height - kept_height, crop, f"{key}/y")
    return Geometry(
        width=target_width,
        height=target_height,
        shown=shown,
        box=(left / width, top / height, (left + kept_width) / width, (top + kept_height) / height),
    )


def _offset(spare: float, crop: str, key: str) -> int:
    # Whole pixels, so that a crop without a resize leaves the pixels as they are.
    whole = math.floor(spare + 1e-9)
    if crop == "corner":
        return 0
    if crop == "center":
        return whole // 2
    return stable_hash(key) % (whole + 1)


def stable_hash(key: str) -> int:
    """Return a large pseudo-random number that depends on the key only."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])
