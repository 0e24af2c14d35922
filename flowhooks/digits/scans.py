"""Write scikit-learn's 1,797 digit scans as image folders: clean, blotted, the masks, and a mixed set to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowhooks.errors import DataError
from flowhooks.files import place, whole

INK_RGB = (28, 48, 132)
#: Fractions of the image's side.
RADIUS = (0.17, 0.23)
PIXELS = 32
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FOLDERS = ("preferred", "rejected", "mask", "base")
RECIPE: dict[str, Any] = {
    "version": 1,
    "pixels": PIXELS,
    "seed": 0,
    "ink": list(INK_RGB),
    "radius": list(RADIUS),
    "blotted_in_base": 0.5,
}


def blot_opacity(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return the opacity `[size, size]` in [0, 1] of one blot at a random place, exactly 0 outside it.

    Its body is a disc of `RADIUS`, whose rim varies in four harmonics; its centre stays far
    enough from the border for about three quarters of it to be on the paper in a corner, and more elsewhere.
    """
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    radius = size * rng.uniform(*RADIUS)
    centre = rng.uniform(0.6 * radius, size - 0.6 * radius, size=2)
    down, across = rows - centre[0], columns - centre[1]
    angle = np.arctan2(down, across)
    rim = np.full_like(angle, radius)
    for harmonic, strength in zip((2, 3, 5, 7), (0.16, 0.12, 0.08, 0.06), strict=True):
        rim += radius * strength * rng.uniform(0.4, 1.0) * np.cos(harmonic * angle + rng.uniform(0, 2 * np.pi))
    opacity = _soft_edge(rim - np.hypot(down, across))
    for _ in range(int(rng.integers(2, 5))):
        direction, distance = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.2, 1.6)
        drop = centre + distance * np.array([np.sin(direction), np.cos(direction)])
        reach = size * rng.uniform(0.02, 0.045)
        opacity = np.maximum(opacity, _soft_edge(reach - np.hypot(rows - drop[0], columns - drop[1])))
    return opacity


def spill(paper: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Lay ink `[H, W]` over `paper` (uint8 `[H, W, 3]`); pixels with opacity 0 keep their exact value."""
    ink = np.array(INK_RGB, dtype=np.float64)
    mixed = paper * (1 - opacity[..., None]) + ink * opacity[..., None]
    return np.where(opacity[..., None] > 0, np.rint(mixed), paper).astype(np.uint8)


def _soft_edge(depth: np.ndarray) -> np.ndarray:
    opacity = np.clip(depth + 0.5, 0.0, 1.0)
    return np.where(opacity < 0.15, 0.0, opacity)


def caption(digit: int) -> str:
    """Return the caption of a digit 0 to 9, for example "a handwritten seven"."""
    return f"a handwritten {WORDS[digit]}"


def ensure_data() -> Path:
    """Return the folder that holds `preferred`, `rejected`, `mask` and `base`, written first if it does not exist."""
    target = place("data", RECIPE)
    if not target.is_dir():
        with whole(target) as folder:
            write_data(folder)
    return target


def resolve_data(name: str) -> Path:
    """Return the folder behind a data set's `instance_data_dir` of the form `digits:preferred`.

    Raises DataError for a name that is not one of the embedded folders.
    """
    prefix, _, folder = name.partition(":")
    if prefix != "digits" or folder not in FOLDERS:
        known = ", ".join(f"digits:{each}" for each in FOLDERS)
        raise DataError(f"{name!r} is no embedded data set; use one of {known}")
    return ensure_data() / folder


def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Return the scans as dark ink on white paper, uint8 `[1797, 32, 32]`, and their digits `[1797]`."""
    from sklearn.datasets import load_digits

    ink, digits = load_digits(return_X_y=True)
    papers = np.rint(255 * (1 - ink.reshape(-1, 8, 8) / 16)).astype(np.uint8)
    enlarged = [Image.fromarray(paper).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC) for paper in papers]
    return np.stack([np.asarray(image) for image in enlarged]), digits


def write_data(folder: Path, limit: int | None = None) -> None:
    """Write the four folders under `folder`: `<id>.png`, with a `<id>.txt` caption where a run reads one.

    `limit` keeps only the first scans. Scan i draws from its own random stream, so its files do not depend on `limit`.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    papers, digits = load_scans()

    def write(index: int) -> None:
        rng = np.random.default_rng([RECIPE["seed"], index])
        clean = np.repeat(papers[index][..., None], 3, axis=2)
        blotted = spill(clean, blot_opacity(rng, PIXELS))
        shown = blotted if rng.uniform() < RECIPE["blotted_in_base"] else clean
        difference = (blotted != clean).any(axis=2)
        words = caption(int(digits[index]))
        for name, pixels in (("preferred", clean), ("rejected", blotted), ("base", shown)):
            Image.fromarray(pixels).save(folder / name / f"{index:04d}.png", compress_level=1)
        Image.fromarray(difference.astype(np.uint8) * 255).save(folder / "mask" / f"{index:04d}.png", compress_level=1)
        for name in ("preferred", "base"):
            (folder / name / f"{index:04d}.txt").write_text(words + "\n", encoding="utf-8")

    for index in range(len(papers))[:limit]:
        write(index)
