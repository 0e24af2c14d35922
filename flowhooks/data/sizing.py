"""Compute the size that an image is trained at from resolution and aspect of its data set block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flowhooks.data.findings import Findings
from flowhooks.data.geometry import stable_hash

MEGAPIXEL = 1_000_000
#: Width : height, as in Diffusers' `generate_aspect_ratio_buckets`, whose module would import torch.
ASPECTS = ((1, 1), (4, 5), (5, 4), (2, 3), (3, 2), (3, 4), (4, 3), (9, 16), (16, 9), (1, 2), (2, 1))
#: Values of `aspect` under which the trained shape differs between images.
BUCKET, OWN, RANDOM = SHAPED = ("bucket", "own", "random")
#: Value of `crop_scale` under which an image is not shrunk to the size of what is cut out of it.
ORIGINAL = "original"
SizeInPixels = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Holds the keys of a block that determine sizes.

    Args:
        resolution, resolution_type: as in the block.
        aspect: `crop`, or one of :data:`SHAPED`; never None.
        multiple: what edges are rounded to, in pixels.
        minimum, maximum, shrunk: `minimum_image_size`, `maximum_image_size`, `target_downsample_size`.
        aspects: (width, height) in any unit, of each shape to choose from.
        crop_scale: as in the block.
    """

    resolution: float | list[int] | None
    resolution_type: str
    aspect: str
    multiple: int
    minimum: float | None
    aspects: tuple[tuple[float, float], ...] = ASPECTS
    crop_scale: str = "whole"
    maximum: float | None = None
    shrunk: float | None = None

    @classmethod
    def of(cls, block: dict[str, Any]) -> Sizing:
        """Read them from a block in which `check_sizing` found no problem."""
        return cls(
            resolution=block["resolution"],
            resolution_type=block["resolution_type"],
            aspect=block["aspect"] or ("crop" if block["resolution_type"] == "pixel" else BUCKET),
            multiple=block["resolution_multiple"],
            minimum=block["minimum_image_size"],
            aspects=ASPECTS if block["aspects"] is None else tuple((each, 1.0) for each in block["aspects"]),
            crop_scale=block["crop_scale"],
            maximum=block["maximum_image_size"],
            shrunk=block["target_downsample_size"],
        )

    def target(self, width: int, height: int, key: str = "") -> SizeInPixels:
        """Return width and height that a `width` x `height` image is trained at.

        Args:
            key: name of the image, on which a random shape depends and nothing else.
        """
        if self.resolution is None:
            return width, height
        if isinstance(self.resolution, list):
            target_height, target_width = self.resolution
            return target_width, target_height
        if self.aspect == OWN:
            return self._shaped((width, height))
        if self.aspect == BUCKET:
            return nearest(self.buckets, width, height)
        if self.aspect == RANDOM:
            return self.buckets[stable_hash(f"{key}/aspect") % len(self.buckets)]
        if self.resolution_type == "pixel":
            return int(self.resolution), int(self.resolution)
        edge = rounded(math.sqrt(self._pixels(self.resolution)), self.multiple)
        return edge, edge

    def too_small(self, width: int, height: int) -> bool:
        """Return whether an image is below `minimum_image_size`."""
        return self.minimum is not None and self._relative(width, height, self.minimum) < 1

    def scale(self, width: int, height: int) -> float:
        """Return what the edges of an image are multiplied by, at least, before a part is cut out of it: 1 keeps its
        size, and 0 lets it be shrunk until the part is as large as possible."""
        if self.crop_scale != ORIGINAL:
            return 0.0
        if self.maximum is None or self.shrunk is None or self._relative(width, height, self.maximum) <= 1:
            return 1.0
        return min(1.0, 1 / self._relative(width, height, self.shrunk))

    def _relative(self, width: int, height: int, size: float) -> float:
        """Return how many times longer the edges are than those of an image of a size in `resolution_type`."""
        if self.resolution_type == "pixel":
            return min(width, height) / size
        return math.sqrt(width * height / self._pixels(size))

    def _pixels(self, number: float) -> float:
        return number * MEGAPIXEL if self.resolution_type == "area" else number**2

    @cached_property
    def buckets(self) -> list[SizeInPixels]:
        """Return (width, height) of each shape, each once, where `aspect` chooses among shapes."""
        return list(dict.fromkeys(map(self._shaped, self.aspects)))

    def _shaped(self, aspect: tuple[float, float]) -> SizeInPixels:
        """Return the (width, height) of `resolution` at an aspect."""
        assert isinstance(self.resolution, (int, float)), "check_sizing() sees to that"
        if self.resolution_type == "pixel":
            return edges(int(self.resolution), aspect, self.multiple)
        return of_area(self._pixels(self.resolution), aspect, self.multiple)


def of_area(pixels: float, aspect: tuple[float, float], multiple: int) -> SizeInPixels:
    """Return (width, height) of about `pixels` pixels at an aspect, both a multiple of `multiple`."""
    wide, high = aspect
    height = math.sqrt(pixels * high / wide)
    return rounded(height * wide / high, multiple), rounded(height, multiple)


def edges(shorter: int, aspect: tuple[float, float], multiple: int) -> SizeInPixels:
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
    shaped = aspect in SHAPED
    original = block["crop_scale"] == ORIGINAL
    setting = f"`resolution_type` {kind!r}" if kind != "pixel" else f"`aspect` {aspect!r}" if shaped else "`crop_scale`"
    if resolution is None and (kind != "pixel" or shaped or original):
        found.problem(f"{path}.resolution", f"is null, the size the images have, but {setting} needs a number")
    if isinstance(resolution, list) and (kind != "pixel" or shaped):
        message = f"is one size, {resolution}, but {setting} gives a size to each aspect; write a number"
        found.problem(f"{path}.resolution", message)
    for key in ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size"):
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
    _check_cut(block, path, found)
    return len(found.problems) == before


def _check_cut(block: dict[str, Any], path: str, found: Findings) -> None:
    """Report keys that have no effect beside the others."""
    largest, shrunk = block["maximum_image_size"], block["target_downsample_size"]
    for key, other in (
        ("maximum_image_size", "target_downsample_size"),
        ("target_downsample_size", "maximum_image_size"),
    ):
        if block[key] is not None and block["crop_scale"] != ORIGINAL:
            found.problem(
                f"{path}.{key}",
                "has no effect without `crop_scale` 'original': images are shrunk to `resolution` anyway, so that as "
                "much as possible is kept; set that, or remove the key",
            )
        elif block[key] is not None and block[other] is None:
            found.problem(f"{path}.{key}", f"has no effect without `{other}`; write both, or neither")
    if largest is not None and shrunk is not None and shrunk > largest:
        found.problem(
            f"{path}.target_downsample_size", f"{shrunk:g} is above `maximum_image_size` {largest:g}; lower it"
        )
    if block["aspects"] is not None and block["aspect"] not in (BUCKET, RANDOM):
        found.problem(
            f"{path}.aspects", "has no effect unless `aspect` is 'bucket' or 'random'; set that, or remove it"
        )
