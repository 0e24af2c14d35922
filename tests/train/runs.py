"""Small real runs: a tiny SD3 on disk and a folder of pairs with masks."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from flowhooks.config import Run, resolve_run
from flowhooks.sampling.labels import cell_image, read_cells
from tests.families import tiny

NAMES = ("one", "two", "three", "four", "five", "six")
FLOW_DPO = [
    {"type": "flow_dpo", "norm_type": "masked_mean", "auto_beta": True, "beta": 50.0},
    {"type": "mask_reducer", "mask_dilate": 0},
    {"type": "anchor_regularizer", "role": "reference", "weight": 0.1},
]


def write_model(folder: Path, seed: int = 0) -> Path:
    """A tiny SD3 as `save_pretrained` writes it."""
    tiny("sd3", seed=seed).save_pretrained(folder)
    return folder


def write_data(root: Path, *, empty_mask: str | None = "three") -> Path:
    """Six pairs with masks, `empty_mask` all black. Returns the data set file."""
    draw = np.random.default_rng(0)
    for name in NAMES:
        for side in ("win", "lose"):
            (root / side).mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / side / f"{name}.png")
        (root / "win" / f"{name}.txt").write_text(f"a photo of {name}", encoding="utf-8")
        mask = np.zeros((16, 16), np.uint8)
        mask[:, : int(draw.integers(4, 14))] = 0 if name == empty_mask else 255
        (root / "mask").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "mask" / f"{name}.png")
    partner = {"dataset_type": "conditioning"}
    blocks = [
        {"id": "win", "instance_data_dir": "win", "conditioning_data": ["lose", "mask"]},
        {"id": "lose", "instance_data_dir": "lose", "conditioning_type": "reference_strict", **partner},
        {"id": "mask", "instance_data_dir": "mask", "conditioning_type": "mask", **partner},
    ]
    file = root / "data.json"
    file.write_text(json.dumps(blocks), encoding="utf-8")
    return file


def document(model: Path, data: Path, output: Path, /, **sections: Any) -> dict[str, Any]:
    """A run of four quick Flow-DPO steps; `sections` are merged into it."""
    base: dict[str, Any] = {
        "model": {"pretrained_model_name_or_path": str(model), "pipeline_arguments": {"max_sequence_length": 8}},
        "adapter": {"type": "lora", "rank": 2, "alpha": 2},
        "data": str(data),
        "hooks": copy.deepcopy(FLOW_DPO),
        "training": {"max_train_steps": 4, "train_batch_size": 2, "learning_rate": 1e-3, "log_every_steps": 2},
        "logging": {"trackers": []},
        "output_dir": str(output),
        "cache_dir": str(output.parent / "cache"),
    }
    for name, section in sections.items():
        merged = isinstance(section, Mapping) and isinstance(base.get(name), Mapping)
        base[name] = {**base[name], **section} if merged else section
    return base


def make_run(*places: Path, **sections: Any) -> Run:
    return resolve_run(document(*places, **sections), Path("run.json"), allow_imports=True)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "parameters.safetensors")


def validated(output: Path, step: int) -> list[Image.Image]:
    """The images of one validation, as they were generated."""
    with Image.open(output / "validation" / f"step_{step:06d}.png") as grid:
        return [cell_image(grid, cell) for cell in read_cells(grid)]


def history(output: Path) -> list[dict[str, Any]]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    # A run in another process may be in the middle of its last line.
    return [json.loads(line) for line in lines if line.endswith("\n")]
