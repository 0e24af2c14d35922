"""A network that is trained as a whole, and sharded over processes, learns what one process teaches it."""

from __future__ import annotations

import json
import os

import pytest
import torch
from diffusers import SD3Transformer2DModel

from flowhooks.config import load_run
from flowhooks.train import train
from flowhooks.train.checkpoint import read
from flowhooks.train.rows import settled
from tests.forked import side_by_side
from tests.golden.record import one_thread
from tests.train.runs import document, history
from tests.train.test_processes import free_port
from tests.train.test_topology import EVERYONE, mistakes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

METHODS = {
    "sft": {},
    # Of a network that is trained there is no base left; its average is what it is compared with.
    "flow_dpo": {"norm_type": "mean", "beta": 5.0, "anchor_alpha": 0.0, "reference": "ema"},
    "anyflow": {"target_mode": "flow_map"},
}


def written(folder, name, model, data, *, count, steps, output):
    training = {
        "trainable": "transformer",
        "max_train_steps": steps,
        "train_batch_size": EVERYONE // count,
        "optimizer": "torch.optim:SGD",
        "optimizer_args": {"momentum": 0.5},
        "learning_rate": 0.05,
        "max_grad_norm": 0.5,
        "log_every_steps": 1,
        "checkpointing_steps": 2,
        "checkpoints_total_limit": None,
        "use_ema": True,
    }
    run = document(model, data, folder / output, adapter=None, method={name: METHODS[name]}, training=training)
    del run["hooks"]
    # Which changes nothing of what is computed.
    run["model"]["gradient_checkpointing"] = count > 2
    file = folder / f"{output}-{count}-{steps}.json"
    file.write_text(json.dumps(run))
    return file


def sharded(rank, files, port, count, resume, copies=1):
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ |= {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": str(copies)}
    for file in files:
        train(load_run(file, allow_imports=True), resume=resume, progress=False)


def states(folder, step):
    found = {
        stem: settled(read(folder / f"checkpoint-{step}", stem)) for stem in ("parameters", "optimization", "session")
    }
    for group in found["optimization"]["optimizer"]["param_groups"]:
        # How torch computes, not what.
        del group["foreach"], group["fused"]
    return {**found, "lines": [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in history(folder)]}


def network(folder):
    return SD3Transformer2DModel.from_pretrained(folder / "pipeline" / "transformer").state_dict()


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_train_the_network_of_one(model, data, tmp_path, count):
    files = {
        name: [written(tmp_path, name, model, data, count=c, steps=2, output=f"{name}-{c}") for c in (1, count)]
        for name in METHODS
    }
    with one_thread():
        for alone, _ in files.values():
            train(load_run(alone, allow_imports=True), progress=False)
    side_by_side(sharded, [several for _, several in files.values()], free_port(), count, None, count=count)
    found = []
    for name in METHODS:
        one, several = (tmp_path / f"{name}-{c}" for c in (1, count))
        found += mistakes(states(one, 2), states(several, 2), name)
        found += mistakes(network(one), network(several), f"{name}: pipeline")
        assert not list((one / "checkpoint-2").glob("*_rows_*"))
        # Every process wrote its rows, and none the whole.
        held = [each.stat().st_size for each in (several / "checkpoint-2").glob("parameters*")]
        assert (
            len(held) == count + 1
            and max(held) < 0.75 * (one / "checkpoint-2" / "parameters.safetensors").stat().st_size
        )
    assert not found, "\n".join(found)


def test_a_sharded_network_goes_on_with_other_numbers_of_processes(model, data, tmp_path):
    """1, then 4 of which two share a network, then 2, then 1 again: weights, momentum and average are read in other
    parts than they were written in."""
    for steps, count in ((1, 1), (2, 4), (3, 2), (4, 1)):
        file = written(tmp_path, "flow_dpo", model, data, count=count, steps=steps, output="changing")
        if count == 1:
            with one_thread():
                train(load_run(file, allow_imports=True), resume="latest", progress=False)
        else:
            side_by_side(sharded, [file], free_port(), count, "latest", count // 2, count=count)
            parts = list((tmp_path / "changing" / f"checkpoint-{steps}").glob("parameters_rows_*"))
            assert len(parts) == 2
    whole = written(tmp_path, "flow_dpo", model, data, count=1, steps=4, output="whole")
    with one_thread():
        train(load_run(whole, allow_imports=True), progress=False)
    found = mistakes(states(tmp_path / "whole", 4), states(tmp_path / "changing", 4), "flow_dpo")
    assert not found, "\n".join(found)
    now, before = (states(tmp_path / "whole", step)["parameters"] for step in (4, 2))
    assert max(float((now[name] - before[name]).abs().max()) for name in now) > 1e-3
