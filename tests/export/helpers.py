"""A run folder as training leaves it, private paths included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

PRIVATE = "/home/somebody/private"


def document(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"pretrained_model_name_or_path": "stabilityai/stable-diffusion-3.5-medium", "dtype": "bf16"},
        "adapter": {"type": "lora", "rank": 4, "alpha": 8.0},
        "data": f"{PRIVATE}/sets/pairs.json",
        "hooks": [{"type": "flow_dpo", "norm_type": "sum"}, {"type": "mask_reducer", "mask_dilate": 1}],
        "training": {"max_train_steps": 4, "seed": 0},
        "output_dir": f"{PRIVATE}/runs/my-dpo",
        **changes,
    }


def run_folder(folder: Path) -> Path:
    """Publishable files, and everything that must stay at home."""
    for name in ("validation", "checkpoint-10", "cache", "logs/tb"):
        (folder / name).mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: other\n---\n# my-dpo\n")
    (folder / "run.json").write_text(json.dumps(document()))
    save_file(
        {"transformer.a.lora_A.weight": torch.ones(2, 2)},
        folder / "pytorch_lora_weights.safetensors",
        {"format": "pt", "flowhooks.run": json.dumps(document()), "note": "plain text"},
    )
    Image.new("RGB", (4, 4)).save(folder / "validation" / "step_000004_0.png")
    for name in (
        "checkpoint-10/pytorch_lora_weights.safetensors",
        "cache/latents.safetensors",
        "optimizer.safetensors",
    ):
        save_file({"x": torch.zeros(1)}, folder / name)
    for name in ("logs/tb/events.out", ".env", "validation/notes.txt", "train.log", "checkpoint-10/run.json"):
        (folder / name).write_text("secret")
    return folder
