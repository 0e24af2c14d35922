"""Ctrl-C and SIGTERM, sent to the real program while it trains; then it goes on as if nothing had been."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.acceptance.test_failing_run import states
from tests.acceptance.user import User
from tests.forked import Program
from tests.train.runs import history, weights
from tests.train.test_resume import equal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 60
#: In seconds: nothing takes as long, unless it hangs.
PATIENCE = 240
TRAINING = {"max_train_steps": STEPS, "checkpointing_steps": 25, "checkpoints_total_limit": None}


def start(user: User, *more: str, interpreter: bool = False) -> subprocess.Popen[str] | Program:
    """The program as a process; ``interpreter``: of a new interpreter, as a user starts it."""
    arguments = ["train", str(user.run), "--no-progress", *more]
    if not interpreter:
        return Program(arguments, user.folder)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        # The sums of this process are made by as many threads.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-m", "flowhooks", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_steps(user: User, count: int, process: subprocess.Popen[str] | Program) -> None:
    end = time.monotonic() + PATIENCE
    file = user.out / "metrics.jsonl"
    while time.monotonic() < end and process.poll() is None:
        if file.is_file() and len(history(user.out)) >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"no step was logged; exit code {process.poll()}, {process.communicate(timeout=PATIENCE)}")


@pytest.fixture(scope="module")
def whole(template, tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(template, folder / "mine")
    user = User(folder, lambda: ("", ""))
    user.write(training=TRAINING)
    assert user.train().code == 0
    return user


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_bit_for_bit(user, whole, number, code):
    user.write(training=TRAINING)
    before = user.state()
    process = start(user, interpreter=number == signal.SIGINT)
    wait_for_steps(user, 28, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert "Traceback" not in err and "stopping after this step, with a checkpoint" in err
    assert user.state() == before
    first, last = sorted(user.out.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    stopped = int(last.name.split("-")[1])
    assert first.name == "checkpoint-25" and 28 <= stopped < STEPS
    assert not (user.out / "pytorch_lora_weights.safetensors").exists()
    if number == signal.SIGTERM:
        # Not even with the last checkpoint lost.
        file = last / "optimization.safetensors"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    process = start(user, "--resume", "latest")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert ("skipped a damaged checkpoint" in err) == (number == signal.SIGTERM)
    assert f"step {STEPS}; results are in {user.out}" in out
    assert equal(states(user, STEPS), states(whole, STEPS))
    assert not equal(weights(first), weights(whole.out / f"checkpoint-{STEPS}"))
    files = [each.out / "pytorch_lora_weights.safetensors" for each in (user, whole)]
    assert tensors(files[0]) == tensors(files[1])
    assert user.state() == before


def tensors(file: Path) -> bytes:
    """The values in a safetensors file; its header names the run's own paths."""
    content = file.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]
