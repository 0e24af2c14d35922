"""A run that a detector ends goes back to the last logged step at which it was off, also after it was resumed."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file

from flowhooks.errors import FlowhooksWarning, TrainingError
from flowhooks.train import train
from tests.train.runs import history, weights

#: On from the second step on: at the first the policy is the reference.
DRIFT = {"detector": "drift", "limit": 1e-9, "patience": 2}
HOOKS = [{"type": "flow_dpo", "norm_type": "mean", "stop_when": DRIFT}]
TRAINING = {"max_train_steps": 9, "log_every_steps": 1, "checkpointing_steps": 2}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlowhooksWarning)
        yield


def test_it_ends_with_the_last_good_step_and_says_why(new_run):
    run = new_run(hooks=HOOKS, training=TRAINING)
    result = train(run, progress=False)
    assert result.step == 1
    assert result.stopped.startswith("stopped at step 3: flow_dpo: `drift`, ")
    assert result.stopped.endswith("at 2 logged steps in a row. Results are those of step 1")
    out = result.output_dir
    assert [each.name for each in out.glob("checkpoint-*")] == ["checkpoint-1"]
    assert [each.name for each in out.glob("set-aside-*/checkpoint-*")] == ["checkpoint-2"]
    assert [line["step"] for line in history(out)] == [1, 2, 3], "what went wrong can be read"
    good = weights(out / "checkpoint-1")
    inside = load_file(out / "checkpoint-1" / "pytorch_lora_weights.safetensors")
    written = load_file(out / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(written[name], inside[name]) for name in inside)

    # The same from a checkpoint at which the detector was on already.
    cut = new_run("cut", hooks=HOOKS, training={**TRAINING, "max_train_steps": 2})
    assert train(cut, progress=False).stopped is None
    again = train(new_run("cut", hooks=HOOKS, training=TRAINING), resume="latest", progress=False)
    assert (again.step, again.stopped) == (1, result.stopped)
    other = weights(again.output_dir / "checkpoint-1")
    assert all(torch.equal(other[name], good[name]) for name in good)


def test_a_run_that_is_wrong_from_the_start_has_no_step_to_go_back_to(new_run):
    rule = {"detector": "saturated", "limit": 0.6, "patience": 1}
    run = new_run(hooks=[{"type": "flow_dpo", "stop_when": rule}], training=TRAINING)
    with pytest.raises(TrainingError, match="`saturated`.* from the first logged step on, .*no step to go back to"):
        train(run, progress=False)
