"""An ink blot: irregular, opaque in the middle, soft at the rim, with a few drops thrown off it."""

from __future__ import annotations

import numpy as np

INK_RGB = (28, 48, 132)
#: Shares of the picture's side.
RADIUS = (0.17, 0.23)


def blot_opacity(rng: np.random.Generator, size: int) -> np.ndarray:
    """The opacity `[size, size]` in [0, 1] of one blot at a random place, exactly 0 outside it.

    Its body is a disc of `RADIUS`, whose rim wanders in four harmonics; its centre stays far
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
    """Ink `[H, W]` laid over `paper` (uint8 `[H, W, 3]`); pixels with opacity 0 keep their exact value."""
    ink = np.array(INK_RGB, dtype=np.float64)
    mixed = paper * (1 - opacity[..., None]) + ink * opacity[..., None]
    return np.where(opacity[..., None] > 0, np.rint(mixed), paper).astype(np.uint8)


def _soft_edge(depth: np.ndarray) -> np.ndarray:
    opacity = np.clip(depth + 0.5, 0.0, 1.0)
    return np.where(opacity < 0.15, 0.0, opacity)
