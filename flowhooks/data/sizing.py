"""Compute the size that an image is trained at from resolution and aspect of its data set block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flowhooks.data.findings import Findings

MEGAPIXEL = 1_000_000
#: Width : height, as in Diffusers' `generate_aspect_ratio_buckets`, whose module would import torch.
ASPECTS = ((1, 1), (4, 5), (5, 4), (2, 3), (3, 2), (3, 4), (4, 3), (9, 16), (16, 9), (1, 2), (2, 1))
SizeInPixels = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Holds the keys of a block that determine sizes. `aspect` is `crop` or `bucket`, never None."""

    resolution: float | list[int] | None
    resolution_type: str
    aspect: str
    multiple: int
    minimum: float | None

    @classmethod
    def of(cls, block: dict[str, Any]) -> Sizing:
        """Read them from a block in which `check_sizing` found no problem."""
        return cls(
            resolution=block["resolution"],
            resolution_type=block["resolution_type"],
            aspect=block["aspect"] or ("crop" if block["resolution_type"] == "pixel" else "bucket"),
            multiple=block["resolution_multiple"],
            minimum=block["minimum_image_size"],
        )

    def target(self, width: int, height: int) -> SizeInPixels:
        """Return width and height that a `width` x `height` image is trained at."""
        if self.resolution is None:
            return width, height
        if isinstance(self.resolution, list):
            target_height, target_width = self.resolution
            return target_width, target_height
        if self.aspect == "bucket":
            return nearest(self.buckets, width, height)
        if self.resolution_type == "pixel":
            return int(self.resolution), int(self.resolution)
        edge = rounded(math.sqrt(self._pixels(self.resolution)), self.multiple)
        return edge, edge

    def too_small(self, width: int, height: int) -> bool:
        """Return whether an image is below `minimum_image_size`."""
        if self.minimum is None:
            return False
        if self.resolution_type == "pixel":
            return min(width, height) < self.minimum
        return width * height < self._pixels(self.minimum)

    def _pixels(self, number: float) -> float:
        return number * MEGAPIXEL if self.resolution_type == "area" else number**2

    @cached_property
    def buckets(self) -> list[SizeInPixels]:
        """Return (width, height) of each bucket, where `aspect` is `bucket`."""
        assert isinstance(self.resolution, (int, float)), "check_sizing() sees to that"
        if self.resolution_type == "pixel":
            return [edges(int(self.resolution), aspect, self.multiple) for aspect in ASPECTS]
        return aspect_buckets(self._pixels(self.resolution), self.multiple)


def aspect_buckets(pixels: float, multiple: int) -> list[SizeInPixels]:
    """Return sizes (width, height) of about `pixels` pixels at each of the usual aspects, both a multiple of
    `multiple`."""
    sizes = []
    for wide, high in ASPECTS:
        height = math.sqrt(pixels * high / wide)
        sizes.append((rounded(height * wide / high, multiple), rounded(height, multiple)))
    return list(dict.fromkeys(sizes))


def edges(shorter: int, aspect: tuple[int, int], multiple: int) -> SizeInPixels:
    """Return (width, height) of an aspect whose shorter edge is `shorter`, both rounded to a multiple."""
    unit = shorter / min(aspect)
    return rounded(aspect[0] * unit, multiple), rounded(aspect[1] * unit, multiple)


def nearest(sizes: list[SizeInPixels], width: int, height: int) -> SizeInPixels:
    """Return the size of the nearest aspect, which cuts the smallest part off."""
    return min(sizes, key=lambda size: abs(math.log(size[0] * height / (size[1] * width))))


def rounded(edge: float, multiple: int) -> int:
    """Return the nearest multiple, at least one."""
    return max(multiple, round(edge / multiple) * multiple)


def check_sizing(block: dict[str, Any], path: str, found: Findings) -> bool:
    """Return whether the keys agree with each other; report a problem for each that does not."""
    resolution, kind, aspect = block["resolution"], block["resolution_type"], block["aspect"]
    before = len(found.problems)
    if resolution is None and (kind != "pixel" or aspect == "bucket"):
        says = f"`resolution_type` {kind!r}" if kind != "pixel" else "`aspect` 'bucket'"
        found.problem(f"{path}.resolution", f"is null, the size the images have, but {says} needs a number")
    if isinstance(resolution, list) and (kind != "pixel" or aspect == "bucket"):
        says = f"`resolution_type` {kind!r}" if kind != "pixel" else "`aspect` 'bucket'"
        message = f"is one size, {resolution}, but {says} gives a size to each aspect; write a number"
        found.problem(f"{path}.resolution", message)
    for key in ("resolution", "minimum_image_size"):
        number = block[key]
        if isinstance(number, float) and kind != "area" and not number.is_integer():
            found.problem(
                f"{path}.{key}",
                f"is {number:g}, but `resolution_type` {kind!r} counts pixels along an edge; write a whole number, or "
                "set `resolution_type` to 'area' for megapixels",
            )
    if kind == "area" and isinstance(resolution, (int, float)) and resolution >= 64:
        found.problem(
            f"{path}.resolution",
            f"is {resolution:g} megapixels; for a square of {resolution:g} pixels a side set `resolution_type` to "
            "'pixel_area'",
        )
    return len(found.problems) == before
