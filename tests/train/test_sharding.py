"""A frozen network that is sharded over processes trains the adapter that the whole one trains."""

from __future__ import annotations

import gc
import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowhooks.adapters.names import LORA_FILE
from flowhooks.config import load_run
from flowhooks.manifest import VALIDATION
from flowhooks.memory.shards import Gathered, held_by_one
from flowhooks.sharding import mesh_of, shard
from flowhooks.train import train
from tests.forked import side_by_side
from tests.golden.record import one_thread
from tests.train.runs import FLOW_DPO, document, weights
from tests.train.test_processes import free_port

pytestmark = pytest.mark.slow

#: Sums of four samples in another order, in float32, through two steps of plain SGD.
TOLERANCE = 1e-6


def trained(rank, run, port, count, copies=1):
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    os.environ |= {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": str(copies)}
    train(load_run(run, allow_imports=True), progress=False)


def live() -> int:
    """Bytes of all tensors of this process."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and not isinstance(each, DTensor)]
    storages = [each.untyped_storage() for each in tensors if each.device.type == "cpu"]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def counted(rank, world, folder):
    torch.set_num_threads(1)
    # What was there before need not be looked through each time.
    gc.freeze()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    before = live()
    network = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(24)))
    whole = live() - before
    shard(network, list(network), mesh_of("cpu", world))
    peaks = []
    for block in network:
        block.register_forward_hook(lambda *_: peaks.append(live() - before))
        block.register_full_backward_hook(lambda *_: peaks.append(live() - before))
    leaf = torch.ones(1, 256, requires_grad=True)
    network(leaf).sum().backward()
    assert leaf.grad is not None and len(peaks) == 2 * len(network)
    assert max(peaks) <= 0.35 * whole, (max(peaks), whole)
    dist.destroy_process_group()


def test_a_process_of_four_holds_its_part_and_the_block_that_computes(tmp_path):
    side_by_side(counted, 4, str(tmp_path), count=4)


class Beside(torch.nn.Module):
    """Twelve blocks, and as much as two more beside them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(256, 256), torch.nn.Linear(256, 256)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(256, 256) for _ in range(12))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class Most(TorchDispatchMode):
    """The most bytes of all tensors after any operator."""

    def __init__(self):
        super().__init__()
        self.peak, self.before = 0, live()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = func(*args, **(kwargs or {}))
        self.peak = max(self.peak, live() - self.before)
        return returned


def planned_for(rank, world, folder):
    torch.set_num_threads(1)
    gc.freeze()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    counting = Most()
    for trained in (False, True):
        network = Beside()
        gathered, whole = Gathered.of(network), sum(p.nbytes for p in network.parameters())
        shard(network, list(network.blocks), mesh_of("cpu", world))
        network.requires_grad_(trained)
        leaf = torch.ones(1, 256, requires_grad=True)
        counting.peak = 0
        for _ in range(2):
            with counting:
                network(leaf).sum().backward()
        # Of a network that is trained, there are gradients of the first backward pass too.
        planned = held_by_one(whole * (1 + trained), world, gathered)
        assert counting.peak == pytest.approx(planned, rel=0.1), (trained, counting.peak, planned)
        del network, leaf
    dist.destroy_process_group()


def test_the_plan_of_a_process_is_what_it_holds(tmp_path):
    side_by_side(planned_for, 4, str(tmp_path), count=4)


def test_sharded_bases_train_the_same_adapter(model, data, tmp_path):
    """On two processes that share a base, and on four of which two share one (HSDP)."""
    training = {
        "max_train_steps": 2,
        "optimizer": "torch.optim:SGD",
        "learning_rate": 2.0,
        "log_every_steps": 1,
        "checkpointing_steps": 2,
    }
    # Beta would be made for margins near rounding.
    hooks = [{**FLOW_DPO[0], "auto_beta_max": 100.0}, *FLOW_DPO[1:]]
    validation = {"holdout": 3, "prompts": ["a photo"], "every_steps": 9, "num_inference_steps": 2}
    files = {}
    for name, batch in (("one", 4), ("two", 2), ("four", 1)):
        run = document(model, data, tmp_path / name, hooks=hooks, validation=validation)
        run["training"] = {**training, "train_batch_size": batch}
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(run))
    with one_thread():
        train(load_run(files["one"], allow_imports=True), progress=False)
    side_by_side(trained, str(files["two"]), free_port(), 2, count=2)
    side_by_side(trained, str(files["four"]), free_port(), 4, 2, count=4)
    one, *others = (weights(tmp_path / name / "checkpoint-2") for name in files)
    assert max(value.abs().max().item() for name, value in one.items() if "lora_B" in name) > 100 * TOLERANCE
    for name in one:
        for other in others:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=TOLERANCE)
    exported = [load_file(tmp_path / name / LORA_FILE) for name in files]
    assert exported[0].keys() == exported[1].keys() == exported[2].keys()
    for name in ("two", "four"):
        assert sorted(each.name for each in (tmp_path / name / VALIDATION).iterdir()) == [
            "step_000000.png",
            "step_000002.png",
        ]
