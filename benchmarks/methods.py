"""Every method as a run on one network of at least 30 million weights, for measurements of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import flowhooks
from benchmarks.step import pipeline
from flowhooks.kernel import Batch
from flowhooks.methods import METHODS
from flowhooks.probe import FlowModel, probe

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
RANK = 16
#: Six blocks of 384 features: 32 million weights.
LARGE = {"layers": 6, "heads": 12}
SMALL = {"layers": 4, "heads": 1}
DRAWN = {"num_inference_steps": 8, "prompts": ["one", "two"], "pipeline_arguments": {"guidance_scale": 1.0}}
INK = [{"type": "flowhooks.digits.rewards:Ink"}]
#: Method -> its options here. Teachers of Flow-OPD are written by :func:`documents`.
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "sft": {},
    "flow_dpo": {"norm_type": "masked_mean", "beta": 500.0, "mask_dilate": 1},
    "anyflow": {"target_mode": "flow_map", "velocity": "reference", "rescale": "sample"},
    "self_flow": {"block_index": 1, "teacher_block_index": 3, "projector_width": 256},
    "dmd": {"jumps": 2, "policy_every": 1},
    "flow_opd": {**DRAWN, "visits": 4},
    "flow_grpo": {**DRAWN, "visits": 4, "group_size": 2, "rewards": INK},
    "adjoint_matching": {**DRAWN, "truncate": {"last_k": 4}, "early_visits": 1, "rewards": INK},
    **{name: {**DRAWN, "group_size": 2, "rewards": INK} for name in ("diffusion_nft", "awm", "dgpo", "crd")},
}
#: Method -> the one whose step is measured for it: theirs differ in a few numbers a sample, in a pass less, or in
#: samples that are drawn before.
LIKE: Mapping[str, str] = dict.fromkeys(("ipo", "kto", "linear_dpo", "mapo", "online_dpo"), "flow_dpo")
#: Method -> most that its step may cost, over its floor.
GOALS = {name: 1.15 if name in ("flow_opd", "adjoint_matching") else 1.10 for name in OPTIONS}
assert {*OPTIONS, *LIKE} == set(METHODS), "every method is measured"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a measurement is.

    Args:
        network: layers and heads of the network.
        edge: pixels of the images.
        batch: samples of a micro-batch.
    """

    network: Mapping[str, int]
    edge: int = 32
    batch: int = 1


def probed(size: Size, device: str = "cpu") -> FlowModel:
    pipe = pipeline(**size.network, places=max(8, size.edge // 4))
    return probe(pipe.to(device), height=size.edge, width=size.edge, arguments={"max_sequence_length": 8})


def batch_of(model: FlowModel, size: Size) -> Batch:
    """Random latents of both sides, and a mask, under one prompt."""
    generator, edge = torch.Generator().manual_seed(1), size.edge // 2
    shape = (size.batch, 4, edge, edge)
    return Batch(
        clean=torch.randn(shape, generator=generator).to(model.device),
        rejected=torch.randn(shape, generator=generator).to(model.device),
        mask=(torch.rand(size.batch, 1, edge, edge, generator=generator) > 0.5).float().to(model.device),
        condition=model.encode_prompts(["one"] * size.batch).to(model.device),
        files=tuple(f"{i}.png" for i in range(size.batch)),
    )


@contextmanager
def documents(size: Size, model: FlowModel | None = None) -> Iterator[dict[str, dict[str, Any]]]:
    """Method -> its run, inside the block, as long as its teacher's folder is there.

    Args:
        model: on which the teacher is made, and left as it was.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        adapter = {"type": "lora", "rank": RANK, "alpha": RANK, "target_modules": list(TARGETS)}
        with flowhooks.attach(model or probed(size), {"adapter": adapter, "hooks": []}) as session:
            with torch.no_grad():
                for weight in session.parameters().values():
                    weight.add_(0.01)
            session.adapter.save(Path(folder), {})
        shared = {
            "model": {"pipeline_arguments": {"max_sequence_length": 8}},
            "adapter": adapter,
            "training": {"train_batch_size": size.batch, "lr_warmup_steps": 0},
        }
        found = {name: {**shared, "method": {name: dict(options)}} for name, options in OPTIONS.items()}
        found["self_flow"]["training"] = {**shared["training"], "use_ema": True}
        found["flow_opd"]["method"]["flow_opd"]["teachers"] = {"one": folder}
        yield found
