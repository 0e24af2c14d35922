"""A run of an optimiser with two points: what is drawn and written is its result, what is trained on is the other."""

from __future__ import annotations

import pytest
import torch

from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.train import train
from flowhooks.train.checkpoint import read
from tests.train.runs import weights

TRAINING = {
    "optimizer": "schedule_free",
    "max_train_steps": 4,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": None,
    "learning_rate": 1e-2,
}
VALIDATION = {"holdout": 1, "every_steps": 1}


@pytest.mark.slow
def test_files_hold_the_average_and_a_resumed_run_is_the_run(new_run):
    whole = train(new_run("whole", training=TRAINING, validation=VALIDATION), progress=False)
    last = whole.output_dir / "checkpoint-4"
    trained, state = weights(last), read(last, "optimization")["optimizer"]["state"]
    for folder in (whole.output_dir, last):
        written = read_adapter(folder).tensors
        assert written.keys() == trained.keys()
        for i, (name, value) in enumerate(trained.items()):
            # x from y and z: y = (1 - beta) z + beta x, with beta = 0.9.
            place = list(read(last, "parameters")).index(name)
            expected = (value - 0.1 * state[place]["z"]) / 0.9
            assert torch.allclose(written[name], expected, atol=1e-6), i
    assert any(not torch.equal(written[name], value) for name, value in trained.items())

    half = {**TRAINING, "max_train_steps": 2}
    train(new_run("half", training=half, validation=VALIDATION), progress=False)
    resumed = train(new_run("half", training=TRAINING, validation=VALIDATION), resume="latest", progress=False)
    again = weights(resumed.output_dir / "checkpoint-4")
    assert all(torch.equal(value, again[name]) for name, value in trained.items())
    assert resumed.metrics["val/loss"] == whole.metrics["val/loss"]
