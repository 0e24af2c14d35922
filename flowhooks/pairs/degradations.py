"""Degrade images by blur, JPEG artefacts, blots or noise. Uses Pillow and NumPy only.

An image is uint8 `[H, W, 3]`, a region bool `[H, W]`. Every function returns the worse image and the region that it
changed; outside of that the image keeps its exact values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

Worse = tuple[np.ndarray, np.ndarray]
#: Fractions of an image's shorter side, and of each side.
BLOT_RADIUS = (0.05, 0.12)
NOISE_SIDES = (0.3, 0.6)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Describes one way to degrade.

    Args:
        apply: image, strength, random numbers, region or None -> worse image and changed region.
        default: strength when none is given.
        least: smallest strength.
        most: largest strength.
        whole: whether the strength must be a whole number.
        unit: meaning of the strength, for messages.
    """

    apply: Callable[[np.ndarray, float, np.random.Generator, np.ndarray | None], Worse]
    default: float
    least: float
    most: float
    whole: bool
    unit: str


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """Holds a kind of `KINDS` with its strength; as text `blur:2`."""

    kind: str
    strength: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.strength:g}"

    def __call__(self, picture: np.ndarray, rng: np.random.Generator, region: np.ndarray | None = None) -> Worse:
        """Return the worse image and the changed region, which is inside `region` if that is given."""
        return KINDS[self.kind].apply(picture, self.strength, rng, region)


def parse(text: str) -> Degradation:
    """Parse `blur`, or with a strength `blur:2`. Raises ValueError for another kind, or a strength outside its
    range."""
    name, colon, written = text.partition(":")
    if name not in KINDS:
        raise ValueError(f"{name!r} is no degradation; the kinds are {', '.join(KINDS)}")
    kind = KINDS[name]
    try:
        strength = float(written) if colon else kind.default
    except ValueError:
        raise ValueError(f"{written!r} is no number; {name} takes {kind.unit}, as in {name}:{kind.default:g}") from None
    if not kind.least <= strength <= kind.most or (kind.whole and strength != int(strength)):
        number = "a whole number" if kind.whole else "a number"
        raise ValueError(
            f"{name}:{written} is out of range; {name} takes {kind.unit}, {number} from {kind.least:g} to {kind.most:g}"
        )
    return Degradation(kind=name, strength=strength)


def stream(seed: int, key: str) -> np.random.Generator:
    """Return the random numbers of one image: they depend on the seed and its name, not on the other images."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()))


def degrade(
    picture: np.ndarray, chosen: Sequence[Degradation], rng: np.random.Generator, region: np.ndarray | None = None
) -> Worse:
    """Apply all of `chosen`, one after the other; return the worse image and the region that any of them changed."""
    where = np.zeros(picture.shape[:2], dtype=bool)
    for each in chosen:
        picture, touched = each(picture, rng, region)
        where |= touched
    return picture, where


def _blur(picture: np.ndarray, radius: float, rng: np.random.Generator, region: np.ndarray | None) -> Worse:
    blurred = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius))
    return _inside(picture, np.asarray(blurred), region)


def _jpeg(picture: np.ndarray, quality: float, rng: np.random.Generator, region: np.ndarray | None) -> Worse:
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=int(quality))
    return _inside(picture, np.asarray(Image.open(file)), region)


def _inside(picture: np.ndarray, worse: np.ndarray, region: np.ndarray | None) -> Worse:
    if region is None:
        return worse, np.ones(picture.shape[:2], dtype=bool)
    return np.where(region[..., None], worse, picture), region


def _noise(picture: np.ndarray, strength: float, rng: np.random.Generator, region: np.ndarray | None) -> Worse:
    where = _rectangle(picture.shape, rng) if region is None else region
    worse = picture.copy()
    noisy = picture[where] + rng.normal(0.0, 255 * strength, (int(where.sum()), 3))
    worse[where] = np.rint(np.clip(noisy, 0, 255)).astype(np.uint8)
    return worse, where


def _rectangle(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    where = np.zeros(shape[:2], dtype=bool)
    sides = [max(1, round(side * rng.uniform(*NOISE_SIDES))) for side in where.shape]
    top, left = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(where.shape, sides, strict=True))
    where[top : top + sides[0], left : left + sides[1]] = True
    return where


def _blots(picture: np.ndarray, number: float, rng: np.random.Generator, region: np.ndarray | None) -> Worse:
    worse, where = picture.copy(), np.zeros(picture.shape[:2], dtype=bool)
    places = np.arange(0) if region is None else np.flatnonzero(region)
    if region is not None and not len(places):
        return worse, where
    for _ in range(int(number)):
        place = rng.integers(where.size) if region is None else places[rng.integers(len(places))]
        centre = np.array(divmod(int(place), picture.shape[1])) + 0.5
        box, opacity = _blot(rng, centre, picture.shape)
        if region is not None:
            opacity = opacity * region[box]
        paper = worse[box]
        # Visible ink: dark on light, light on dark.
        dark = paper[opacity > 0].mean() > 127
        ink = rng.integers(0, 64, 3) if dark else rng.integers(192, 256, 3)
        mixed = np.rint(paper * (1 - opacity[..., None]) + ink * opacity[..., None])
        worse[box] = mixed.astype(np.uint8)
        where[box] |= opacity > 0
    return worse, where


def _blot(
    rng: np.random.Generator, centre: np.ndarray, shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the box around one blot, and its opacity there: a disc whose rim varies in three harmonics, softened by a
    pixel."""
    height, width = shape[:2]
    radius = max(1.5, min(height, width) * rng.uniform(*BLOT_RADIUS))
    reach = math.ceil(1.5 * radius)
    top, left = max(0, int(centre[0]) - reach), max(0, int(centre[1]) - reach)
    box = slice(top, min(height, int(centre[0]) + reach + 1)), slice(left, min(width, int(centre[1]) + reach + 1))
    rows, columns = np.mgrid[box] + 0.5
    down, across = rows - centre[0], columns - centre[1]
    angle = np.arctan2(down, across)
    rim = np.full_like(angle, radius)
    for harmonic in (2, 3, 5):
        rim += radius * rng.uniform(0, 0.13) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    return box, np.clip(rim - np.hypot(down, across) + 0.5, 0.0, 1.0)


KINDS = {
    "blur": Kind(apply=_blur, default=2, least=0.1, most=100, whole=False, unit="a radius in pixels"),
    "jpeg": Kind(apply=_jpeg, default=10, least=1, most=95, whole=True, unit="a quality"),
    "blots": Kind(apply=_blots, default=3, least=1, most=100, whole=True, unit="how many"),
    "noise": Kind(apply=_noise, default=0.25, least=0.01, most=1, whole=False, unit="a share of white"),
}
