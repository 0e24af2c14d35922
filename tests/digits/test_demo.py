"""The demo's LoRA is trained once a run, and its evidence is judged by the goal as it is written."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.evidence_flow_dpo import verdict
from flowhooks.adapters.names import LORA_FILE
from flowhooks.commands.demo import trained_lora
from flowhooks.digits.judge import Score
from flowhooks.digits.model import build
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.report import draw, load_stock
from flowhooks.digits.scans import write_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_data(folder, limit=8)
    return folder


@pytest.fixture(scope="module")
def base(scans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    build(folder, read_pixels(scans / "preferred"), steps=1, progress=False)
    return folder


@pytest.fixture
def overrides(scans, base):
    partner = {"dataset_type": "conditioning", "source_dataset_id": "preferred"}
    data = [
        {"id": "preferred", "instance_data_dir": str(scans / "preferred")},
        {**partner, "id": "rejected", "conditioning_type": "reference_strict"},
        {**partner, "id": "mask", "conditioning_type": "mask"},
    ]
    for block in data[1:]:
        block["instance_data_dir"] = str(scans / block["id"])
    return (
        f"model.pretrained_model_name_or_path={base}",
        f"data={json.dumps(data)}",
        "training.max_train_steps=2",
        "training.train_batch_size=2",
        "training.learning_rate=0.01",
        "validation.prompts=[]",
        "logging.trackers=[]",
    )


def test_a_lora_is_trained_once_a_run_and_changes_what_the_stock_pipeline_draws(tmp_path, base, overrides, monkeypatch):
    folder, run = trained_lora(tmp_path, base, False, overrides=overrides)
    assert run.training["max_train_steps"] == 2
    written = (folder / LORA_FILE).stat().st_mtime_ns

    again, _ = trained_lora(tmp_path, base, False, overrides=overrides)
    assert again == folder
    assert (folder / LORA_FILE).stat().st_mtime_ns == written

    other, _ = trained_lora(tmp_path, base, False, overrides=(*overrides, "training.seed=1"))
    assert other != folder

    rebuilt, _ = trained_lora(tmp_path, base, False, rebuild=True, overrides=overrides)
    assert rebuilt == folder
    assert (folder / LORA_FILE).stat().st_mtime_ns > written

    monkeypatch.setattr("flowhooks.digits.report.STEPS", 2)
    before, after = (draw(load_stock(base, lora), 2, progress=False) for lora in (None, folder))
    assert not torch.equal(before, after)


@pytest.mark.parametrize(
    ("blots", "digits", "reached"),
    [
        ((0.0, 0.24, 0.9), (0.9, 0.93, 0.99), True),
        ((0.1, 0.25, 0.2501), (0.95, 0.95, 0.95), False),
        ((0.1, 0.1, 0.1), (0.91, 0.91, 0.99), False),
    ],
)
def test_the_goal_is_judged_by_medians(blots, digits, reached):
    def score(blot, digit):
        return Score(blot_rate=blot, digit_accuracy=digit, frechet=1.0, count=500)

    after = [score(*pair) for pair in zip(blots, digits, strict=True)]
    assert verdict(score(0.5, 0.95), after)[0] is reached
