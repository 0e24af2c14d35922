"""Folders as runs leave them, made without training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flowhooks.config import resolve_run
from flowhooks.sampling.labels import Cell, labelled_grid

HEALTH = {"flow_dpo_implicit_accuracy": "implicit accuracy"}
PROMPTS = ("a handwritten seven", "a fox in the snow, seen from the side, soft light")


def write_run(folder: Path, *, steps: int = 200, **sections: Any) -> Path:
    """The `run.json` of a Flow-DPO run."""
    document: dict[str, Any] = {
        "model": {"pretrained_model_name_or_path": "digits", "dtype": "fp32"},
        "adapter": {"type": "lora", "rank": 16, "alpha": 16},
        "hooks": [{"type": "flow_dpo", "auto_beta": True}, {"type": "anchor_regularizer", "weight": 0.05}],
        "training": {"max_train_steps": steps, "train_batch_size": 16},
        "validation": {"prompts": list(PROMPTS), "every_steps": 100},
        "output_dir": str(folder),
        **sections,
    }
    folder.mkdir(parents=True, exist_ok=True)
    run = resolve_run(document, folder / "run.json")
    (folder / "run.json").write_text(json.dumps(run.document), encoding="utf-8")
    return folder


def dpo_values(step: int, of: int, seed: int = 0) -> dict[str, float | None]:
    """What a Flow-DPO run logs, roughly."""
    draw = random.Random(step * 31 + seed)
    far = 1 - math.exp(-3 * step / of)
    margin = 2e-3 * far + draw.gauss(0, 4e-4)
    bands = ("0.00_0.25", "0.25_0.50", "0.50_0.75", "0.75_1.00")
    return {
        "loss": 0.69 - 0.3 * far + draw.gauss(0, 0.02),
        "flow_dpo_implicit_accuracy": min(1.0, max(0.0, 0.5 + 0.45 * far + draw.gauss(0, 0.06))),
        "flow_dpo_margin": margin,
        "flow_dpo_win_adv": 0.6 * margin + draw.gauss(0, 1e-4),
        "flow_dpo_lose_adv": 0.4 * margin + draw.gauss(0, 1e-4),
        "flow_dpo_beta": 2e4 * math.exp(-2.5 * far),
        "flow_dpo_gradient_factor": 0.5 - 0.3 * far + draw.gauss(0, 0.01),
        "flow_dpo_drift_inside": 0.02 * far,
        "flow_dpo_drift_outside": 0.004 * far,
        **{
            f"flow_dpo_margin_sigma_{band}": None if draw.random() < 0.1 else margin * (0.4 + 0.5 * i)
            for i, band in enumerate(bands)
        },
        "mask_coverage": 0.31 + draw.gauss(0, 0.01),
        "grad_norm": 12 * math.exp(draw.gauss(0, 0.4)),
        "learning_rate": 1e-4 * min(1.0, step / (0.1 * of)),
        "seconds_per_step": 0.42 + abs(draw.gauss(0, 0.03)),
        "epoch": step / 112,
    }


def write_metrics(folder: Path, steps: Iterable[int], of: int, seed: int = 0) -> None:
    """One line for each of these steps."""
    lines = [json.dumps({"step": step, **dpo_values(step, of, seed)}) for step in steps]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_events(folder: Path, events: Sequence[dict[str, Any]]) -> None:
    (folder / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events), encoding="utf-8")


def start(**told: Any) -> dict[str, Any]:
    """The event at a run's start."""
    audit = ["preferred: 1,797 pairs of 32x32 with masks", "note: 3 captions are empty"]
    counts = {"samples": 1797, "images": 1797, "rejected": 1797, "masks": 1797, "references": 0, "captions": 10}
    summary = ["device: cpu, 12.3 GB of 16.0 GB of memory free; weights in fp32, mixed precision no", "steps: 200"]
    return {"step": 0, "event": "start", "health": HEALTH, "summary": summary, "audit": audit, "counts": counts, **told}


def drawing(at: float, cell: int, side: int = 192) -> Image.Image:
    """An image that changes with `at`, from 0 to 1."""
    y, x = np.mgrid[0:side, 0:side] / side
    ring = np.exp(-((np.hypot(x - 0.5, y - 0.5) - 0.3) ** 2) * 220)
    blot = (1 - at) * np.exp(-((np.hypot(x - 0.3 - 0.1 * cell, y - 0.35)) ** 2) * 60)
    paper = np.array([244, 239, 226])
    ink = np.array([[36, 52, 110], [120, 40, 60], [30, 90, 70], [60, 60, 66]][cell % 4])
    mixed = np.clip(ring + blot, 0, 1)[..., None]
    return Image.fromarray((paper * (1 - mixed) + ink * mixed).astype(np.uint8))


def write_grid(
    folder: Path, step: int, of: int, *, side: int = 192, each: int = 2, prompts: Sequence[str] = PROMPTS
) -> None:
    """The labelled grid of one validation."""
    cells = [Cell(prompt=prompt, seed=seed, steps=20) for prompt in prompts for seed in range(each)]
    pictures = [drawing(step / of, i, side) for i in range(len(cells))]
    (folder / "validation").mkdir(exist_ok=True)
    grid = labelled_grid(pictures, cells, columns=each, step=step)
    grid.save(folder / "validation" / f"step_{step:06d}.png")


def write_finished(folder: Path, *, steps: int = 200, every: int = 1, seed: int = 0, **sections: Any) -> Path:
    """A finished run with everything."""
    write_run(folder, steps=steps, **sections)
    write_metrics(folder, [1, *range(every + (every == 1), steps + 1, every)], steps, seed)
    for step in range(0, steps + 1, max(1, steps // 4)):
        write_grid(folder, step, steps)
    warning = "flow_dpo: the gradient factor 0.04 is below 0.05: pairs are saturated; lower `beta`"
    write_events(
        folder,
        [
            start(),
            {"step": 0, "event": "warning", "text": "3 captions are empty"},
            {"step": steps // 2, "event": "warning", "text": warning},
            {"step": steps, "event": "memory", "bytes": {"process": 3_400_000_000}},
            {"step": steps, "event": "end"},
        ],
    )
    (folder / "metrics.json").write_text(json.dumps({"loss": 0.4, "learning_rate": 1e-4, "epoch": 1.8}))
    (folder / "pytorch_lora_weights.safetensors").write_bytes(b"")
    return folder
