"""Runs that draw what they train on: without data, resumed, and a student of teachers that were trained so."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.errors import CheckpointError
from flowhooks.train import train
from flowhooks.train.checkpoint import read
from tests.train.runs import history, make_run, weights
from tests.train.test_resume import equal, killed_at

PROMPTS = [{"prompt": "a photo of one", "task": "dark"}, {"prompt": "a photo of two", "task": "base"}]
DRAWING = {"prompts": PROMPTS, "num_inference_steps": 3, "visits": 1}
INK = {"flow_grpo": {**DRAWING, "group_size": 2, "rewards": [{"type": "flowhooks.embedded.rewards:Ink"}]}}
TRAINING = {"max_train_steps": 4, "checkpointing_steps": 2, "checkpoints_total_limit": None}
VALIDATION = {"height": 16, "width": 16}
ROOMS = {"data": None, "training": TRAINING, "validation": VALIDATION}


def student_of(teacher):
    return {"flow_opd": {**DRAWING, "teachers": {"dark": str(teacher)}, "anchor_weight": 0.1}}


@pytest.fixture(scope="module")
def teacher(model, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "out"
    run = make_run(model, folder, folder, hooks=[], method=INK, cache_dir=str(cache), **ROOMS)
    return train(run, progress=False).output_dir


def test_a_run_without_data_is_rewarded_for_what_it_draws(teacher):
    lines = history(teacher)
    assert all(0 <= line["flow_grpo_reward_ink"] <= 1 for line in lines)
    first, last = (weights(teacher / f"checkpoint-{step}") for step in (2, 4))
    assert all(not torch.equal(value, last[name]) for name, value in first.items())


@pytest.mark.parametrize("method", ["flow_grpo", "flow_opd"])
def test_a_resumed_run_is_the_run(new_run, teacher, method):
    sections = {**ROOMS, "method": INK if method == "flow_grpo" else student_of(teacher)}
    whole = train(new_run("whole", hooks=[killed_at(99)], **sections), progress=False)
    stopped = new_run("stopped", hooks=[killed_at(2)], **sections)
    with pytest.raises(SystemExit):
        train(stopped, progress=False)
    torch.manual_seed(1234)
    resumed = train(stopped, resume="latest", progress=False)
    a, b = whole.output_dir / "checkpoint-4", resumed.output_dir / "checkpoint-4"
    for stem in ("parameters", "optimization", "session", "process_0"):
        assert equal(read(a, stem), read(b, stem)), stem


def test_a_student_is_not_resumed_under_another_teacher(new_run, teacher, tmp_path):
    own = tmp_path / "teacher"
    own.mkdir()
    file = next(teacher.glob("*.safetensors"))
    (own / file.name).write_bytes(file.read_bytes())
    run = new_run(hooks=[], **ROOMS, method=student_of(own))
    train(run, progress=False)
    with safe_open(file, framework="pt") as handle:
        metadata = handle.metadata()
    save_file({name: 2 * value for name, value in load_file(file).items()}, own / file.name, metadata)
    with pytest.raises(CheckpointError, match="teacher 'dark'"):
        train(run, resume="latest", progress=False)
