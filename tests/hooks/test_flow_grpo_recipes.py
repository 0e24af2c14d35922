"""The recipes of Flow-GRPO and its relatives pass `check` and train, and their table holds what they are made of."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import flowhooks
from flowhooks import cli
from flowhooks.train import train
from tests.golden.digits import EXAMPLES, prepare

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

INK = {"type": "flowhooks.digits.rewards:Ink"}
#: Recipe -> the options that make it what it is, as published where a value was.
RECIPES = {
    "flow_grpo": {"updates_per_rollout": 2, "clip_range": 1e-4, "spread": "batch", "kl_weight": 0.04},
    "grpo_guard": {"updates_per_rollout": 2, "ratio": "guarded"},
    "dance_grpo": {"noise_schedule": "constant", "noise_level": 0.3, "shared_start": True, "clip_range": 1e-4},
    "mix_grpo": {"window": [0, 4], "window_every": 25, "num_inference_steps": 25},
    "gdpo": {"combine": "decoupled"},
    "flow_dppo": {"trust": "divergence", "divergence_threshold": 1e-5, "updates_per_rollout": 2, "visits": 3},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    prepare(folder)
    return folder


def test_every_variant_has_a_recipe():
    files = {file.stem.removeprefix("digits_") for file in (EXAMPLES / "flow_grpo").glob("digits_*.json")}
    assert files - {"bold", "legible"} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_check_and_train(name, place, capsys):
    """On two prompts and groups of two; of two rewards the second is the first again, as that needs no judge."""
    file, out = EXAMPLES / "flow_grpo" / f"digits_{name}.json", place / name
    written = json.loads(file.read_text(encoding="utf-8"))["method"]["flow_grpo"]
    assert {option: written[option] for option in RECIPES[name]} == RECIPES[name]
    changes = {
        "model.pretrained_model_name_or_path": str(place / "base"),
        "method.flow_grpo.prompts": ["a handwritten one", "a handwritten two"],
        "method.flow_grpo.group_size": 2,
        "training.max_train_steps": 3,
        "training.train_batch_size": 2,
        "training.log_every_steps": 1,
        "logging.trackers": [],
        "validation.prompts": [],
        "output_dir": str(out),
        "cache_dir": str(place / "cache"),
    }
    if len(written["rewards"]) > 1:
        changes["method.flow_grpo.rewards"] = [INK, {**INK, "name": "again", "weight": 0.5}]
    sets = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    assert cli.main(["check", str(file), *(word for each in sets for word in ("--set", each))]) == 0
    assert capsys.readouterr().out.endswith("ok\n")
    train(flowhooks.config.load_run(file, sets), progress=False)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in logged if "flow_grpo_reward" in line]
    assert len(steps) == 3 and all(math.isfinite(line["loss"]) for line in steps)
    if "updates_per_rollout" in written:
        first, second, third = steps
        assert first["flow_grpo_ratio"] == third["flow_grpo_ratio"] == 1 and first["flow_grpo_rounding"] == 0
        assert second["flow_grpo_divergence"] > 0 and first["flow_grpo_divergence"] == 0
        assert first["flow_grpo_reward"] == second["flow_grpo_reward"] != third["flow_grpo_reward"]
    else:
        assert not any("flow_grpo_ratio" in line for line in steps)
