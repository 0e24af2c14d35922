"""Prompts of different lengths on two processes: of every rollout both make as many parts, and each the same of it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist

import flowhooks
from flowhooks import distributed
from tests.families import learnt
from tests.forked import side_by_side
from tests.laws.test_composition import METHODS, moved

pytestmark = pytest.mark.slow

#: The network is given as many tokens as a prompt has letters; whoever draws the long one has two shapes to draw.
PROMPTS = ["a", "b", "c", "a long one"]
EVERYONE = len(PROMPTS)
RUNS = {
    "adjoint_matching": {"clip_quantile": 1.0, "reward_scale": 5.0},
    "adjoint_matching, clipped": {},
    "flow_grpo": {},
    "flow_grpo, updates": {"updates_per_rollout": 2, "spread": "batch", "trust": "divergence"},
    "diffusion_nft": {},
    "awm": {"updates_per_rollout": 2},
    "crd": {},
    "dgpo": {"beta": 1.0},
    "online_dpo": {"updates_per_rollout": 2, "beta": 0.5},
}


def run_of(name: str, size: int) -> dict:
    method = name.partition(",")[0]
    return {
        "adapter": {"type": "lora", "rank": 2, "alpha": 2},
        "method": {method: {**METHODS[method], **RUNS[name], "prompts": PROMPTS}},
        "training": {"seed": 3, "train_batch_size": size},
    }


def gradients(model, run: dict) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Of as many steps as train on a rollout, averaged over the processes; and of how many pictures each chunk was."""
    torch.manual_seed(0)
    with flowhooks.attach(model, run) as session:
        moved(session)
        parameters = session.parameters()
        sizes = []
        for _ in range(getattr(session.source, "updates_per_rollout", 1)):
            for result in session.steps(None):
                result.loss.backward()
                sizes.append(len(result.files))
        distributed.average_gradients(list(parameters.values()))
        return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}, sizes


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # A process that waits for another one's part of a rollout would wait for ever.
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=limit)
    model = learnt("z-image")
    for name in RUNS:
        found, sizes = gradients(model, run_of(name, EVERYONE // 2))
        torch.save(found, f"{folder}/{name}-{rank}.pt")
        with open(f"{folder}/{name}-{rank}.json", "w", encoding="utf-8") as stream:
            json.dump(sizes, stream)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_prompts_of_different_lengths_on_two_processes(tmp_path):
    side_by_side(worker, str(tmp_path), count=2)
    model = learnt("z-image")
    for name in RUNS:
        one, sizes = gradients(model, run_of(name, EVERYONE))
        read = [json.loads((tmp_path / f"{name}-{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
        assert read[0] == read[1], name
        both = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        for key, value in one.items():
            assert torch.equal(both[0][key], both[1][key])
            if "clipped" not in name:
                torch.testing.assert_close(both[0][key], value, rtol=1e-3, atol=1e-5)
