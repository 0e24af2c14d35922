"""Small real data sets on disk."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowhooks.data import audit
from flowhooks.data.blocks import Datasets
from flowhooks.data.load import load_datasets
from flowhooks.data.records import Audit
from flowhooks.errors import DataError


def image_set(id: str, **keys: Any) -> dict[str, Any]:
    return {"id": id, "dataset_type": "image", "type": "local", "instance_data_dir": id, **keys}


def partner_set(id: str, kind: str, **keys: Any) -> dict[str, Any]:
    conditioning = {"dataset_type": "conditioning", "conditioning_type": kind}
    return {"id": id, "type": "local", "instance_data_dir": id, **conditioning, **keys}


def write_image(path: Path, size: tuple[int, int] = (16, 16), seed: int = 0, **options: Any) -> Path:
    """A picture of noise; no two seeds give one content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_mask(path: Path, mask: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)
    return path


def undecodable(png: bytes) -> bytes:
    """The same PNG with a broken stream of pixels in a chunk whose checksum is right."""
    at = png.index(b"IDAT")
    size = int.from_bytes(png[at - 4 : at])
    chunk = b"IDAT" + b"?" * size
    return png[:at] + chunk + zlib.crc32(chunk).to_bytes(4) + png[at + 8 + size :]


def write_pairs(root: Path, names: Sequence[str], size: tuple[int, int] = (16, 16)) -> None:
    """`win`, with captions, `lose` and `mask` under `root`; the left half of every mask is white."""
    left = np.zeros((size[1], size[0]))
    left[:, : size[0] // 2] = 255
    for seed, name in enumerate(names):
        write_image(root / "win" / f"{name}.png", size, 2 * seed)
        (root / "win" / f"{name}.txt").write_text(f"a photo of {name}", encoding="utf-8")
        write_image(root / "lose" / f"{name}.png", size, 2 * seed + 1)
        write_mask(root / "mask" / f"{name}.png", left)


PAIR = (image_set("win", conditioning_data=["lose"]), partner_set("lose", "reference_strict"))
TRIPLE = (
    image_set("win", conditioning_data=["lose", "mask"]),
    partner_set("lose", "reference_strict"),
    partner_set("mask", "mask"),
)


def load(root: Path, blocks: Sequence[dict[str, Any]] | dict[str, Any]) -> Datasets:
    """The blocks, read back from the data set file `root/data.json`."""
    (root / "data.json").write_text(json.dumps(blocks), encoding="utf-8")
    return load_datasets("data.json", root)


def audit_in(root: Path, blocks: Sequence[dict[str, Any]] | dict[str, Any]) -> Audit:
    return audit(load(root, blocks))


def problems_in(root: Path, blocks: Sequence[dict[str, Any]] | dict[str, Any]) -> list[str]:
    """The problems' paths and messages; every one names the data set file. The audit leaves every file as it was."""
    before = snapshot(root)
    try:
        audit_in(root, blocks)
    except DataError as error:
        assert all(problem.file == str(root / "data.json") for problem in error.problems)
        assert {**before, root / "data.json": None} == {**snapshot(root), root / "data.json": None}
        return [f"{problem.path}: {problem.message}" for problem in error.problems]
    return []


def snapshot(root: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
