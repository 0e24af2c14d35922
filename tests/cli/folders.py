"""A run on disk that `check` accepts: three pairs with masks, a pipeline folder, a run file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

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


def make_run(folder: Path, **changes: Any) -> Path:
    """Write everything; ``changes`` replace sections of the run."""
    for i, name in enumerate(("win", "lose", "mask")):
        (folder / name).mkdir()
        for number in range(3):
            Image.new("RGB", (16, 16), (80 * i, 40 * number, 10)).save(folder / name / f"{number}.png")
            (folder / name / f"{number}.txt").write_text("a square")
    (folder / "model").mkdir()
    (folder / "model" / "model_index.json").write_text("{}")
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
