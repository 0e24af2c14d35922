"""Runs and data sets as files, and what reading them complains of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowhooks.config import load_run
from flowhooks.errors import ConfigError, Problem

SEED_DATASETS = [
    {
        "id": "preferred",
        "dataset_type": "image",
        "type": "local",
        "instance_data_dir": "/data/win",
        "conditioning_data": ["rejected"],
    },
    {
        "id": "rejected",
        "dataset_type": "conditioning",
        "conditioning_type": "reference_strict",
        "type": "local",
        "instance_data_dir": "/data/lose",
        "source_dataset_id": "preferred",
    },
]
SEED_CONFIG = {
    "flow_dpo": {
        "beta": 1.0,
        "auto_beta": True,
        "auto_beta_target_gf": 0.2,
        "auto_beta_decay": 0.99,
        "norm_type": "sum",
        "mask_dilate": 1,
        "anchor_alpha": 0.0,
        "sft_loss_weight": 0.0,
    }
}


def written(folder: Path, document: Any, name: str = "run.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def problems(folder: Path, document: Any, overrides: tuple[str, ...] = (), *, complete: bool = False) -> list[Problem]:
    """What a refused run is told."""
    with pytest.raises(ConfigError) as caught:
        load_run(written(folder, document), overrides, complete=complete)
    return list(caught.value.problems)


def only(folder: Path, document: Any, overrides: tuple[str, ...] = ()) -> Problem:
    """The single problem of a refused run."""
    found = problems(folder, document, overrides)
    assert len(found) == 1, found
    return found[0]
