"""Two steps of the trainer for every method on the digits: the runs of `examples/`, on less data and steps.

The autoencoder is trained for a moment and the transformer not at all, so no run takes longer than its two steps.
Left out are runs whose reward is the judge of the digits: their method is here with another reward.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import flowhooks
from flowhooks.digits.model import build
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.scans import write_data
from flowhooks.train import train
from tests.golden.record import fingerprint, one_thread

EXAMPLES = Path(__file__).parents[2] / "examples"
CASES = {
    "sft": "sft/digits.json",
    "flow_dpo": "flow_dpo/digits.json",
    "anyflow": "anyflow/digits.json",
    "self_flow": "self_flow/digits.json",
    "twin_flow": "twin_flow/digits.json",
    "flow_grpo": "flow_grpo/digits_bold.json",
    "diffusion_nft": "diffusion_nft/digits.json",
    "awm": "awm/digits.json",
    "dgpo": "dgpo/digits.json",
    "crd": "crd/digits.json",
    "online_dpo": "online_dpo/digits.json",
    "adjoint_matching": "adjoint_matching/digits.json",
    "flow_opd": "flow_opd/digits.json",
}
#: Of metrics.jsonl: what depends on the clock.
TIMES = {"seconds", "seconds_per_step", "time", "samples_per_second"}


def prepare(folder: Path) -> None:
    """Write the scans and the pipeline."""
    write_data(folder / "scans", limit=8)
    with one_thread():
        build(folder / "base", read_pixels(folder / "scans" / "preferred"), steps=2, progress=False)


def result(name: str, folder: Path) -> dict[str, Any]:
    """What a run logs in two steps, and the weights in its files."""
    file, run = EXAMPLES / CASES[name], folder / name
    with one_thread():
        train(flowhooks.config.load_run(file, _overrides(name, file, folder, run)), progress=False)
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    page = (run / "report.html").read_text(encoding="utf-8")
    named = {name for line in logged for name, value in line.items() if value is not None} - {"step", "epoch"}
    assert [name for name in named if f'"metric":"{name}"' not in page] == [], "all that a method logs is on its page"
    weights = {
        f"{found.relative_to(run).as_posix()}:{key}": value
        for found in sorted(run.rglob("*.safetensors"))
        if "cache" not in found.parts and (found.parent == run or "transformer" in found.parts)
        for key, value in load_file(found).items()
    }
    return {
        "logged": [{key: value for key, value in line.items() if key not in TIMES} for line in logged],
        "weights": fingerprint(weights),
    }


def _overrides(name: str, file: Path, folder: Path, run: Path) -> list[str]:
    found = {
        "model.pretrained_model_name_or_path": str(folder / "base"),
        "training.max_train_steps": 2,
        "training.train_batch_size": 2,
        "training.lr_warmup_steps": 0,
        "logging.trackers": [],
        "training.log_every_steps": 1,
        "validation.prompts": [],
        "output_dir": str(run),
        "cache_dir": str(folder / "cache"),
    }
    written = json.loads(file.read_text(encoding="utf-8"))
    if written.get("data"):
        found["data"] = _data(folder / "scans", pairs=name == "flow_dpo")
    if name == "flow_opd":
        for teacher, method in (("legible", "adjoint_matching"), ("bold", "flow_grpo")):
            found[f"method.flow_opd.teachers.{teacher}"] = str(folder / method)
    if "prompts" in written.get("method", {}).get(name, {}) and name != "flow_opd":
        found[f"method.{name}.prompts"] = ["a handwritten one", "a handwritten two"]
    return [f"{key}={json.dumps(value)}" for key, value in found.items()]


def _data(scans: Path, *, pairs: bool) -> list[dict[str, Any]]:
    partner = {"dataset_type": "conditioning", "source_dataset_id": "preferred"}
    blocks = [{"id": "preferred", "instance_data_dir": str(scans / "preferred")}]
    if pairs:
        rejected = {"id": "rejected", "instance_data_dir": str(scans / "rejected")}
        blocks.append({**partner, **rejected, "conditioning_type": "reference_strict"})
        mask = {"id": "mask", "instance_data_dir": str(scans / "mask")}
        blocks.append({**partner, **mask, "conditioning_type": "mask"})
    return blocks
