"""A run whose pictures come in two sizes, from files to weights."""

from __future__ import annotations

import json
import math

import torch

from flowhooks.train import train
from tests.data.folders import TRIPLE
from tests.data.test_several_sizes import SQUARE, write_two_sizes
from tests.train.runs import history, make_run, weights


def test_every_step_draws_one_size_and_held_out_samples_are_measured_in_theirs(model, tmp_path, monkeypatch):
    write_two_sizes(tmp_path, SQUARE)
    (tmp_path / "data.json").write_text(json.dumps(TRIPLE), encoding="utf-8")
    drawn = []
    steps = torch.nn.Module.__call__

    def watched(self, *args, **kwargs):
        if type(self).__name__ == "SD3Transformer2DModel":
            drawn.append(tuple(kwargs["hidden_states"].shape[-2:]))
        return steps(self, *args, **kwargs)

    run = make_run(
        model,
        tmp_path / "data.json",
        tmp_path / "out",
        training={"max_train_steps": 4, "log_every_steps": 1, "checkpointing_steps": 2},
        validation={"holdout": 2, "every_steps": 2},
    )
    monkeypatch.setattr(torch.nn.Module, "__call__", watched)
    whole = train(run, progress=False)
    assert {(16, 8), (8, 8)} <= set(drawn)
    lines = history(whole.output_dir)
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert [line["step"] for line in lines if "val/loss" in line] == [0, 2, 4]

    resumed = tmp_path / "resumed"
    resumed.mkdir()
    (whole.output_dir / "checkpoint-2").rename(resumed / "checkpoint-2")
    again = make_run(
        model,
        tmp_path / "data.json",
        resumed,
        training={"max_train_steps": 4, "log_every_steps": 1, "checkpointing_steps": 2},
        validation={"holdout": 2, "every_steps": 2},
    )
    train(again, resume="latest", progress=False)
    before, after = weights(whole.output_dir / "checkpoint-4"), weights(resumed / "checkpoint-4")
    assert all(torch.equal(before[name], after[name]) for name in before)
