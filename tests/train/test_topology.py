"""A checkpoint goes on with other numbers of processes as the run would have: 1, then 2, then 4, then 1 again."""

from __future__ import annotations

import json
import os

import pytest
import torch

from flowhooks.config import load_run
from flowhooks.train import train
from flowhooks.train.checkpoint import read
from tests.forked import side_by_side
from tests.golden.record import one_thread
from tests.laws.cases import teacher
from tests.laws.test_composition import LIKE, METHODS
from tests.train.runs import document, history
from tests.train.test_methods_on_processes import TOLERANCE
from tests.train.test_processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

RUNS = tuple(name for name in METHODS if name not in LIKE or name == "kto")
#: Methods whose frozen network is sharded too, in the stages of several processes.
SHARDED = ("flow_dpo", "self_flow", "flow_grpo")
#: Processes of each step of a run.
STAGES = (1, 2, 4, 1)
EVERYONE = 4


def run_of(name, model, data, output, *, size, steps):
    options = {key: value for key, value in METHODS[name].items() if name != "sft"}
    if "teachers" in options:
        options["teachers"] = {"b": teacher()}
    if name == "online_dpo":
        # At a large beta the gradients turn rounding into numbers.
        options["beta"] = 0.5
    training = {
        "max_train_steps": steps,
        "train_batch_size": size,
        "optimizer": "torch.optim:SGD",
        "optimizer_args": {"momentum": 0.5},
        "learning_rate": 0.2,
        "log_every_steps": 1,
        "use_ema": True,
        "checkpoints_total_limit": None,
        "seed": 3,
    }
    found = document(model, data, output, method={name: options}, training=training)
    del found["hooks"]
    if "prompts" in options:
        del found["data"]
    return found


def written(folder, name, model, data, *, count, steps, output=None):
    file = folder / f"{name}-{steps}.json"
    output = folder / (output or name)
    file.write_text(json.dumps(run_of(name, model, data, output, size=EVERYONE // count, steps=steps)))
    return file


def stage(rank, files, port, count, sharded):
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharded else {}
    for file in files:
        train(load_run(file, allow_imports=True), resume="latest", progress=False)


def mistakes(mine, theirs, place):
    """What differs between two states."""
    if isinstance(mine, torch.Tensor):
        if mine.is_floating_point():
            same = mine.shape == theirs.shape and torch.allclose(theirs, mine, **TOLERANCE)
        else:
            same = torch.equal(mine, theirs)
        return [] if same else [f"{place}: {mine} {theirs}"]
    if isinstance(mine, dict):
        if mine.keys() != theirs.keys():
            return [f"{place}: {sorted(mine.keys() ^ theirs.keys())}"]
        return [found for key in mine for found in mistakes(mine[key], theirs[key], f"{place}.{key}")]
    if isinstance(mine, (list, tuple)):
        pairs = zip(mine, theirs, strict=True)
        return [found for i, both in enumerate(pairs) for found in mistakes(*both, f"{place}[{i}]")]
    if isinstance(mine, float):
        return [] if theirs == pytest.approx(mine, rel=2e-3, abs=1e-4, nan_ok=True) else [f"{place}: {mine} {theirs}"]
    return [] if mine == theirs else [f"{place}: {mine} {theirs}"]


@pytest.mark.parametrize(("names", "sharded"), [(RUNS, False), (SHARDED, True)], ids=["whole", "sharded"])
def test_a_run_goes_on_with_other_numbers_of_processes(model, data, tmp_path, names, sharded):
    for step, count in enumerate(STAGES, start=1):
        files = [written(tmp_path, name, model, data, count=count, steps=step) for name in names]
        if count == 1:
            with one_thread():
                for file in files:
                    train(load_run(file, allow_imports=True), resume=None if step == 1 else "latest", progress=False)
        else:
            side_by_side(stage, files, free_port(), count, sharded, count=count)
    found = []
    for name in names:
        whole = written(tmp_path, name, model, data, count=1, steps=len(STAGES), output=f"{name}-whole")
        with one_thread():
            train(load_run(whole, allow_imports=True), progress=False)
        both = [tmp_path / f"{name}-whole", tmp_path / name]
        for stem in ("parameters", "optimization", "session", "progress"):
            one, several = (read(folder / f"checkpoint-{len(STAGES)}", stem) for folder in both)
            for each in (one, several):
                if stem == "progress":
                    del each["values"]["seconds_per_step"]
            found += mistakes(one, several, f"{name}: {stem}")
        lines = [[{k: v for k, v in line.items() if k != "seconds_per_step"} for line in history(f)] for f in both]
        found += mistakes(*lines, f"{name}: metrics")
    assert not found, "\n".join(found)
