"""A run on disk that `check` accepts: three pairs with masks, a pipeline folder, a run file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

COMMANDS = [
    *("init", "check", "explain", "train", "sample", "inspect", "pairs", "convert"),
    *("export", "merge", "push", "schema", "env", "demo", "probe"),
]
BLOCKS = [
    {"id": "win", "instance_data_dir": "win", "conditioning_data": ["lose", "mask"]},
    {
        "id": "lose",
        "dataset_type": "conditioning",
        "conditioning_type": "reference_strict",
        "instance_data_dir": "lose",
    },
    {"id": "mask", "dataset_type": "conditioning", "conditioning_type": "mask", "instance_data_dir": "mask"},
]


def write_pipeline(folder: Path) -> None:
    """What `check` reads of a pipeline like Stable Diffusion 3: its index, its settings, and headers of its weights."""
    settings = {
        "transformer": {"_class_name": "SD3Transformer2DModel", "patch_size": 2, "in_channels": 4},
        "vae": {"_class_name": "AutoencoderKL", "block_out_channels": [8, 8], "latent_channels": 4},
    }
    index: dict[str, Any] = {"_class_name": "StableDiffusion3Pipeline", "text_encoder": [None, None]}
    for part, config in settings.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
        layer = {"block.to_q.weight": np.zeros((4, 4), np.float32)}
        save_file(layer, folder / part / "diffusion_pytorch_model.safetensors")
        index[part] = ["diffusers", config["_class_name"]]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))


def make_run(folder: Path, **changes: Any) -> Path:
    """Write everything; ``changes`` replace sections of the run."""
    for i, name in enumerate(("win", "lose", "mask")):
        (folder / name).mkdir()
        for number in range(3):
            colour = (80 * i, 40 * number, 10) if name != "mask" else (255 - number,) * 3
            Image.new("RGB", (16, 16), colour).save(folder / name / f"{number}.png")
            (folder / name / f"{number}.txt").write_text("a square")
    write_pipeline(folder / "model")
    (folder / "data.json").write_text(json.dumps(BLOCKS))
    document = {
        "model": {"pretrained_model_name_or_path": str(folder / "model")},
        "data": "data.json",
        "hooks": [
            {"type": "anchor_regularizer", "weight": 0.05},
            {"type": "mask_reducer", "mask_dilate": 1},
            {"type": "flow_dpo", "norm_type": "masked_mean", "auto_beta": True},
        ],
        "output_dir": str(folder / "out"),
    }
    path = folder / "run.json"
    path.write_text(json.dumps({**document, **changes}))
    return path
