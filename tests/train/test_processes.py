"""Two gloo processes under `accelerate launch` do what one does with the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from flowhooks import distributed
from flowhooks.config import load_run
from flowhooks.errors import CheckpointError
from flowhooks.manifest import verify
from flowhooks.train import train
from flowhooks.train.agreement import aside
from flowhooks.train.background import Background
from flowhooks.train.checkpoint import Checkpoints, read
from tests.data.folders import snapshot
from tests.forked import side_by_side
from tests.golden.record import one_thread
from tests.train.runs import FLOW_DPO, document, history, weights

pytestmark = pytest.mark.slow

#: Sums of four samples in another order, in float32, through four AdamW steps.
TOLERANCE = 1e-6
ROOT = Path(__file__).parents[2]
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
TWO += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def start_two(run):
    command = [sys.executable, *TWO, "-m", "tests.train.launched", str(run)]
    # accelerate starts several processes on CPUs only by way of its launcher for GPUs.
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("step ") == 2


def resume_two(run, port):
    """What the launcher starts, without its two interpreters."""
    side_by_side(resumed, str(run), port, count=2)


def resumed(rank, run, port):
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert train(load_run(run, allow_imports=True), resume="latest", progress=False).step == 4


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def run_files(model, data, tmp_path_factory):
    """A run for one process with four samples a batch, and one for two processes with two each."""
    root = tmp_path_factory.mktemp("processes")
    training = {"max_train_steps": 4, "gradient_accumulation_steps": 2, "checkpointing_steps": 2, "log_every_steps": 1}
    # AdamW's first steps do not depend on a gradient's size, nor does a beta made for margins near rounding: both would
    # blow up noise, so SGD takes large steps here and beta is held.
    optimizer = {"optimizer": "torch.optim:SGD", "learning_rate": 2.0}
    hooks = [{**FLOW_DPO[0], "auto_beta_max": 100.0}, *FLOW_DPO[1:]]
    times = {
        "type": "timestep_schedule",
        "flow_custom_timesteps": [900, 600, 300],
        "flow_timesteps_mode": "round-robin",
    }
    files = {}
    blocks = json.loads(data.read_text())
    again = {**blocks[0], "id": "again", "probability": 2, "caption_dropout": 0.5, "start_step": 1}
    drawn = [
        {**block, "instance_data_dir": str(data.parent / block["instance_data_dir"])} for block in (*blocks, again)
    ]
    for name, batch in (("one", 4), ("two", 2)):
        run = document(model, data, root / name, data=drawn, hooks=[*hooks, times], validation={"holdout": 1})
        run["cache_dir"] = str(root / f"cache_{name}")
        run["training"] = {**training, **optimizer, "train_batch_size": batch}
        if name == "two":
            # Each process has its blocks on the host, which changes nothing.
            run["model"] |= {"gradient_checkpointing": True, "offload": "blocks"}
        files[name] = root / f"{name}.json"
        files[name].write_text(json.dumps(run))
    return root, files


def test_two_processes_train_as_one_and_resume_exactly(run_files):
    root, files = run_files
    with one_thread():
        train(load_run(files["one"], allow_imports=True), progress=False)
    start_two(files["two"])
    # Two processes that fill an empty cache at once write what one writes.
    caches = [snapshot(root / f"cache_{name}") for name in files]
    one, two = ({path.relative_to(root).parts[1:]: data for path, data in each.items()} for each in caches)
    assert one == two and len(one) == 3
    one, two = (weights(root / name / "checkpoint-4") for name in ("one", "two"))
    moved = max(value.abs().max().item() for name, value in one.items() if "lora_B" in name)
    assert moved > 1000 * TOLERANCE
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=TOLERANCE)
    for mine, theirs in zip(history(root / "one"), history(root / "two"), strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("loss", "flow_dpo_margin", "mask_empty_pct", "val/loss", "epoch"):
            if name in mine:
                assert theirs[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-6), name
    assert any(line.get("mask_empty_pct", 0) > 0 for line in history(root / "two"))

    checkpoint = root / "two" / "checkpoint-4"
    assert read(checkpoint, "session")["micro_step"] == 8
    states = [read(checkpoint, f"process_{rank}")["random"]["torch"] for rank in (0, 1)]
    assert not torch.equal(*states)

    # As if killed after step 2.
    for path in checkpoint.iterdir():
        path.unlink()
    checkpoint.rmdir()
    resume_two(files["two"], free_port())
    again = weights(checkpoint)
    assert all(torch.equal(again[name], two[name]) for name in two)
    assert not torch.equal(*[read(checkpoint, f"process_{rank}")["random"]["torch"] for rank in (0, 1)])


def saved_beside(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    out = Path(folder) / "out"
    with aside() as group:

        def save(step, place):
            saving = Background()
            states = {"parameters": {"a": torch.full((2,), float(step))}}
            saving.submit(Checkpoints(place, group=group).taken(step, states, {"rank": rank}, {}, lambda folder: None))
            # Meanwhile the steps exchange theirs.
            assert distributed.all_reduce(torch.ones(())) == 2
            saving.join()

        save(1, out)
        with pytest.raises(CheckpointError, match="checkpoint-2"):
            save(2, out if rank == 0 else Path(folder) / "gone")
        save(3, out)
    dist.destroy_process_group()


def test_processes_write_beside_the_steps_and_fail_together(tmp_path):
    side_by_side(saved_beside, str(tmp_path), count=2)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["checkpoint-1", "checkpoint-3"]
    verify(tmp_path / "out" / "checkpoint-3")
    assert read(tmp_path / "out" / "checkpoint-3", "parameters")["a"].tolist() == [3.0, 3.0]
    assert [read(tmp_path / "out" / "checkpoint-1", f"process_{rank}")["rank"] for rank in (0, 1)] == [0, 1]
