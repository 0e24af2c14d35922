"""A run that a detector ends goes back to the last logged step at which it was off, also after it was resumed and on
several processes."""

from __future__ import annotations

import json
import os
import socket
import warnings

import pytest
import torch
from safetensors.torch import load_file

from flowhooks.config import load_run
from flowhooks.errors import FlowhooksWarning, TrainingError
from flowhooks.train import train
from flowhooks.train.checkpoint import read
from tests.forked import side_by_side
from tests.train.runs import document, history, weights

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

    # Whoever wants to go on from there all the same does.
    freed = [{**HOOKS[0], "stop_when": None}]
    assert train(new_run(hooks=freed, training={**TRAINING, "max_train_steps": 4}), resume="latest").step == 4

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


def _stopped(rank, run, port):
    """One process of several: how its run ended, beside the run."""
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    result = train(load_run(run), progress=False)
    with open(f"{run}.{rank}", "w", encoding="utf-8") as stream:
        json.dump([result.step, result.stopped], stream)


@pytest.mark.slow
def test_all_processes_stop_together_with_the_last_good_step(model, data, tmp_path):
    """The checkpoint of step 2 is of a logged step at which the detector was on already: the good one is written late,
    by both processes."""
    run, out = tmp_path / "run.json", tmp_path / "out"
    run.write_text(json.dumps(document(model, data, out, hooks=HOOKS, training={**TRAINING, "train_batch_size": 1})))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    side_by_side(_stopped, str(run), port, count=2)
    ends = [json.loads((tmp_path / f"run.json.{rank}").read_text()) for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert ends[0][0] == 1 and ends[0][1].startswith("stopped at step 3: flow_dpo: `drift`, ")
    assert [each.name for each in out.glob("checkpoint-*")] == ["checkpoint-1"]
    assert [each.name for each in out.glob("set-aside-*/checkpoint-*")] == ["checkpoint-2"]
    states = [read(out / "checkpoint-1", f"process_{rank}")["random"]["torch"] for rank in (0, 1)]
    assert not torch.equal(*states), "each process has its own"
    good, written = weights(out / "checkpoint-1"), load_file(out / "pytorch_lora_weights.safetensors")
    assert len(history(out)) == 3
    inside = load_file(out / "checkpoint-1" / "pytorch_lora_weights.safetensors")
    assert good and all(torch.equal(written[name], inside[name]) for name in inside)
