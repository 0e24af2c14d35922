"""A run that hangs, or that loses a process, ends on all of its processes, with a message that says where."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import time
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import nn

from flowhooks.cli import main
from flowhooks.errors import TrainingError
from flowhooks.train import train
from flowhooks.train.lock import LOCK
from flowhooks.train.watchdog import Watchdog
from tests.forked import context
from tests.train.runs import document

#: In seconds: no run that hangs takes as long to end.
BOUND = 60


def stall(micro_step: int, how: str, rank: int = 0) -> dict[str, object]:
    return {"type": "tests.train.toys:StallAt", "micro_step": micro_step, "how": how, "rank": rank}


TRAINING = {"max_train_steps": 4, "checkpointing_steps": 1, "log_every_steps": 1, "watchdog_seconds": 1.5}


def test_a_run_that_hangs_ends_with_its_place_its_checkpoint_and_the_command(new_run):
    run = new_run(hooks=[stall(2, "sleep")], training=TRAINING)
    began = time.monotonic()
    with pytest.raises(TrainingError) as found:
        train(run, progress=False, again="flowhooks train mine.json --resume latest")
    assert time.monotonic() - began < BOUND
    first, last = str(found.value).splitlines()
    assert first.startswith("nothing got done for 1.5 s (`training.watchdog_seconds`): the run hangs at step 3, in ")
    command = "flowhooks train mine.json --resume latest"
    assert last == f"the last checkpoint is {run.output_dir}/checkpoint-2; to resume: {command}"
    out = run.output_dir
    told = json.loads((Path(out) / "events.jsonl").read_text().splitlines()[-2])
    assert (told["event"], told["text"]) == ("stopped", str(found.value))
    assert not (Path(out) / LOCK).exists()


def test_what_goes_on_is_no_hang(tmp_path):
    network = nn.Sequential(nn.Linear(1, 1))
    watch = Watchdog(0.3, tmp_path, "")
    with watch.open():
        with watch.counting([network]):
            for _ in range(12):
                network(torch.zeros(1))
                time.sleep(0.05)
        with watch.paused("a download"):
            time.sleep(0.6)
        assert watch.failure is None
        with pytest.raises(TrainingError, match=r"the run hangs at a download, in threading.py:"):
            Event().wait(BOUND)
    assert not network._forward_pre_hooks


def _ends(arguments, file, changed):
    """A program with these arguments; what it tells goes into a file."""
    with open(file, "wb") as stream:
        os.dup2(stream.fileno(), 2)
    torch.set_num_threads(1)
    # A process of a fork server has its workers forked there, where no signal finds them.
    multiprocessing.set_start_method("fork", force=True)
    os.environ |= changed
    raise SystemExit(main(arguments))


def _programs(tmp_path, run, count):
    """Start a run on so many processes, and wait: rank -> its exit code, what it told and when it ended."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    file = tmp_path / "run.json"
    file.write_text(json.dumps(run))
    arguments = ["train", str(file), "--no-progress", "--allow-imports"]
    started = []
    for rank in range(count):
        changed = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank)}
        changed |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        given = arguments, str(tmp_path / f"told-{rank}"), changed if count > 1 else {}
        started.append(context().Process(target=_ends, args=given))
        started[-1].start()
    end = time.monotonic() + BOUND
    try:
        for process in started:
            process.join(end - time.monotonic())
            assert process.exitcode is not None, "it hangs"
    finally:
        for process in started:
            process.kill()
    return [(each.exitcode, (tmp_path / f"told-{rank}").read_text()) for rank, each in enumerate(started)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["worker SIGKILL", "worker SIGSTOP"])
def test_a_worker_of_the_loader_that_dies_or_hangs_ends_the_run(model, data, cache, tmp_path, how):
    training = {**TRAINING, "max_train_steps": 40, "dataloader_num_workers": 1}
    # torch looks every five seconds whether a worker is there.
    training["watchdog_seconds"] = 30 if how.endswith("KILL") else 3
    run = document(model, data, tmp_path / "out", hooks=[stall(2, how)], training=training, cache_dir=str(cache))
    [(code, told)] = _programs(tmp_path, run, 1)
    assert code == 1, told
    assert "to resume: flowhooks train" in told and told.count("to resume:") == 1
    said = "`training.dataloader_num_workers`" if how.endswith("KILL") else "nothing got done for 3 s"
    assert said in told and "Traceback" not in told and "unexpected" not in told


@pytest.mark.slow
@pytest.mark.parametrize("how, rank", [("SIGKILL", 0), ("SIGKILL", 1), ("SIGSTOP", 0), ("SIGSTOP", 1), ("sleep", 1)])
def test_a_process_that_is_lost_ends_the_others(model, data, cache, tmp_path, how, rank):
    training = {**TRAINING, "watchdog_seconds": 3}
    hooks = [stall(2, how, rank)]
    run = document(model, data, tmp_path / "out", hooks=hooks, training=training, cache_dir=str(cache))
    ends = _programs(tmp_path, run, 2)
    code, told = ends[1 - rank]
    assert code == 1, told
    # That of step 2 is written beside the step in which the process is lost, by all of them.
    assert f"rank {rank} " in told and re.search(r"checkpoint-[12]; to resume: flowhooks train", told)
    assert "Traceback" not in told and "unexpected" not in told
    if how == "sleep":
        assert ends[rank][0] == 1 and "rank 1 hangs while the others wait" in told
    else:
        assert ends[rank][0] == -9, "it was killed, or is now"
