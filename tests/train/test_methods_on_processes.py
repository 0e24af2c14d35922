"""Every method on two and on four processes does what one does with the same global batch: losses, metrics, weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import distributed as dist

import flowhooks
from flowhooks import distributed
from flowhooks.kernel.view import Batch, StepResult
from flowhooks.probe.recomputing import repeated_blocks
from flowhooks.sharding import mesh_of, shard
from flowhooks.train.metrics import MetricWindow
from tests.forked import side_by_side
from tests.laws.cases import batch_for, teacher, tiny_model
from tests.laws.test_composition import LIKE, METHODS, document, moved

pytestmark = pytest.mark.slow

#: Samples of all processes together.
EVERYONE = 4
#: Sums in another order, in float32, through two steps of plain SGD.
TOLERANCE = {"rtol": 1e-3, "atol": 2e-5}
#: Methods, and a run of hooks of which one process may have a metric that another has not.
TWIN = [
    {"type": "twin_flow_target"},
    {"type": "interval_times", "r_timestep_sampler": "mixture"},
    {"type": "twin_flow"},
]
#: Two updates on a rollout, whose rewards are normalised over all processes.
UPDATES = {
    **METHODS["flow_grpo"],
    "rewards": [*METHODS["flow_grpo"]["rewards"], {"type": "flowhooks.digits.rewards:Ink", "name": "b", "weight": 2.0}],
    "updates_per_rollout": 2,
    "combine": "decoupled",
    "ratio": "guarded",
    "kl_weight": 0.1,
    "clip_range": 0.01,
}
#: What KTO compares samples with is a mean over all processes, and AWM and CRD compare within groups.
RUNS = [
    *(name for name in METHODS if name not in LIKE or name in ("kto", "awm", "crd")),
    "twin_flow",
    "flow_grpo, updates",
]


def run_of(name: str, size: int, teachers: str) -> dict:
    if name == "twin_flow":
        found = {**document({}), "hooks": TWIN}
    elif name == "flow_grpo, updates":
        found = document({"flow_grpo": UPDATES})
    else:
        found = document({name: {} if name == "sft" else METHODS[name]})
    if name == "online_dpo":
        # At a large beta the gradients turn rounding into numbers.
        found["method"][name]["beta"] = 0.5
    if "flow_opd" in found["method"]:
        found["method"]["flow_opd"]["teachers"] = {"b": teachers}
    found["training"] = {**found["training"], "train_batch_size": size}
    return found


def part(batch: Batch, rows: slice) -> Batch:
    whole = list(range(EVERYONE))[rows]
    return replace(
        batch,
        clean=batch.clean[rows],
        rejected=batch.rejected[rows],
        mask=batch.mask[rows],
        condition=batch.condition.take(whole),
        files=batch.files[rows],
    )


def data(step: int) -> Batch:
    """Four samples, of which ``batch_for`` makes three at most."""
    one, other = batch_for(2 * step), batch_for(2 * step + 1)
    joined = {key: torch.cat([getattr(one, key), getattr(other, key)]) for key in ("clean", "rejected", "mask")}
    return Batch(**joined, condition=one.condition.join([other.condition]), files=(*one.files, *other.files))


def trained(model, run: dict, rank: int, size: int) -> dict:
    """Two steps of SGD: the metrics of each, and what is trained in the end."""
    torch.manual_seed(0)
    with flowhooks.attach(model, run) as session:
        moved(session)
        parameters = session.parameters()
        optimizer = torch.optim.SGD(list(parameters.values()), lr=1e-2)
        window, logged = MetricWindow(1, 2), []
        for step in range(2):
            for result in session.steps(part(data(step), slice(rank * size, (rank + 1) * size))):
                assert isinstance(result, StepResult)
                result.loss.backward()
                window.add(result)
            distributed.average_gradients(list(parameters.values()))
            optimizer.step()
            optimizer.zero_grad()
            session.updated()
            window.step()
            values = window.fetch()
            del values["seconds_per_step"]
            logged.append(values)
        return {"logged": logged, "weights": {name: value.detach().clone() for name, value in parameters.items()}}


def mistakes(mine: dict, theirs: dict, name: str) -> list[str]:
    """What differs between one process and several."""
    found = []
    for step, (one, several) in enumerate(zip(mine["logged"], theirs["logged"], strict=True)):
        if one.keys() != several.keys():
            found.append(f"{name}, step {step}: {sorted(one.keys() ^ several.keys())}")
        for metric in one.keys() & several.keys():
            if several[metric] != pytest.approx(one[metric], rel=2e-3, abs=1e-4, nan_ok=True):
                found.append(f"{name}, step {step}: {metric} {one[metric]} {several[metric]}")
    for key, value in mine["weights"].items():
        if not torch.allclose(theirs["weights"][key], value, **TOLERANCE):
            found.append(f"{name}: {key} by {float((theirs['weights'][key] - value).abs().max())}")
    return found


def worker(rank: int, world: int, sharded: bool, folder: str, teachers: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    model = tiny_model()
    if sharded:
        shard(model.transformer, repeated_blocks(model.transformer), mesh_of("cpu", world))
    for name in RUNS:
        found = trained(model, run_of(name, EVERYONE // world, teachers), rank, EVERYONE // world)
        if rank == 0:
            torch.save(found["weights"], f"{folder}/{name}.pt")
            with open(f"{folder}/{name}.json", "w", encoding="utf-8") as stream:
                json.dump(found["logged"], stream)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone():
    model = tiny_model()
    return {name: trained(model, run_of(name, EVERYONE, teacher()), 0, EVERYONE) for name in RUNS}


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_several_processes_do_what_one_does(alone, world, sharded, tmp_path):
    side_by_side(worker, world, sharded, str(tmp_path), teacher(), count=world)
    found = []
    for name in RUNS:
        logged = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        weights = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        found += mistakes(alone[name], {"logged": logged, "weights": weights}, name)
    assert not found, "\n".join(found)
