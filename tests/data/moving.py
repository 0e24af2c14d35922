"""Small clips of every kind, of known pixels."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_clip(path: Path, frames: int = 8, size: tuple[int, int] = (32, 32), seed: int = 0) -> np.ndarray:
    """A clip of the kind that the suffix says; returns its pixels `[F, H, W, 3]`. A GIF and a video file hold frames of
    one grey each, brighter from frame to frame, which they keep nearly; the others noise, which they keep."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    suffix = path.suffix
    if suffix in (".webp", ".png", ".apng"):
        pixels = np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    else:
        greys = np.linspace(20 + seed, 220 + seed, frames).astype(np.uint8)
        pixels = np.broadcast_to(greys[:, None, None, None], (frames, height, width, 3)).copy()
    if suffix in (".webp", ".gif", ".png", ".apng"):
        first, *rest = [Image.fromarray(each) for each in pixels]
        options = {"lossless": True} if suffix == ".webp" else {}
        kind = "PNG" if suffix == ".apng" else None
        first.save(path, format=kind, save_all=True, append_images=rest, duration=125, **options)
        return pixels
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx" if suffix in (".webm", ".mkv") else "mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 4_000_000
        for each in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(each, format="rgb24")))
        container.mux(stream.encode())
    return pixels
