"""What the engine costs: a step of flowhooks against a loop written by hand.

``python -m benchmarks.step flow_dpo`` prints JSON: the ratio to the same arithmetic by hand, forwards counted, and
bytes held. ``anyflow`` compares with nothing but the step's forwards and backward on the bare network and its adapter,
``self_flow`` with a plain training step of the whole network through flowhooks.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn import functional as F

import flowhooks
from benchmarks.measure import interleaved, machine, ratio
from flowhooks.kernel.view import Batch
from flowhooks.probe import probe
from flowhooks.testing import tiny

RUN = {
    "model": {"pipeline_arguments": {"max_sequence_length": 8}},
    "adapter": {"type": "lora", "rank": 16, "alpha": 16, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]},
    "hooks": [
        {"type": "flow_dpo", "norm_type": "masked_mean", "beta": 500.0},
        {"type": "mask_reducer", "mask_dilate": 1},
        {"type": "anchor_regularizer", "role": "reference", "weight": 0.05},
    ],
}

ANYFLOW = {
    "model": RUN["model"],
    "adapter": RUN["adapter"],
    "method": {"anyflow": {"target_mode": "flow_map", "velocity": "reference", "rescale": "sample"}},
}

WHOLE = {"model": RUN["model"], "adapter": None, "training": {"trainable": "transformer", "use_ema": True}}
SELF_FLOW = {**WHOLE, "method": {"self_flow": {"block_index": 2, "teacher_block_index": 4, "projector_width": 256}}}


def pipeline(seed: int = 0, layers: int = 4, heads: int = 4, places: int = 8) -> Any:
    """The tiny pipeline with a transformer the size of the embedded digits' (about 2 M weights), or a larger one.

    Args:
        places: patches along an edge for which it has embeddings.
    """
    from diffusers import SD3Transformer2DModel

    pipe = tiny("sd3", seed=seed)
    torch.manual_seed(seed)
    config = {
        **pipe.transformer.config,
        "num_layers": layers,
        "attention_head_dim": 32,
        "num_attention_heads": heads,
        "caption_projection_dim": 32 * heads,
        "dual_attention_layers": (),
        "pos_embed_max_size": places,
        "sample_size": 2 * places if places > 8 else 8,
    }
    pipe.transformer = SD3Transformer2DModel.from_config(config).eval()
    return pipe


def ours(
    batch_size: int, device: str, run: dict[str, Any] = RUN, **size: int
) -> tuple[Callable[[], None], Callable[[], int], Any]:
    """A step through ``flowhooks.attach``, and how many forwards it made."""
    model = probed(device, **size)
    context = flowhooks.attach(model, run)
    session = context.__enter__()
    optimizer = torch.optim.AdamW(session.parameters().values(), lr=1e-4)
    batch = batch_of(model, batch_size, device)
    passes = []

    def step() -> None:
        result = session.step(batch, log=False)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        session.updated()
        passes.append(result.passes)

    return step, lambda: passes[-1], context


def probed(device: str, **size: int) -> Any:
    return probe(pipeline(**size).to(device), height=16, width=16, arguments=RUN["model"]["pipeline_arguments"])


def adapted(device: str, **size: int) -> tuple[Any, list[BaseTunerLayer], torch.optim.Optimizer]:
    """The probed pipeline with a PEFT LoRA put on by PEFT alone, its layers, and an optimiser of its weights."""
    model = probed(device, **size)
    transformer = model.transformer.requires_grad_(False)
    targets = RUN["adapter"]["target_modules"]
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=16, target_modules=targets), transformer)
    layers = [m for m in transformer.modules() if isinstance(m, BaseTunerLayer)]
    return model, layers, torch.optim.AdamW([p for p in transformer.parameters() if p.requires_grad], lr=1e-4)


def by_hand(batch_size: int, device: str) -> Callable[[], None]:
    """The same arithmetic, written out."""
    model, layers, optimizer = adapted(device)
    transformer = model.transformer
    batch = batch_of(model, batch_size, device)
    ((_, prompt),) = batch.condition.groups()
    text = {name: torch.cat([v, v]) for name, v in prompt.items()}
    generator = torch.Generator(device).manual_seed(0)

    def step() -> None:
        u = compute_density_for_timestep_sampling("logit_normal", batch_size, 0.0, 1.0)
        sigma = (3 * u / (1 + 2 * u)).to(device)
        noise = torch.randn(batch.clean.shape, generator=generator, device=device)
        mask = F.max_pool2d(batch.mask, 3, 1, 1)
        clean, e = torch.cat([batch.clean, batch.rejected]), torch.cat([noise, noise])
        s = torch.cat([sigma, sigma])
        x = (1 - s.view(-1, 1, 1, 1)) * clean + s.view(-1, 1, 1, 1) * e
        call = {"hidden_states": x, "timestep": s * 1000, "return_dict": False, **text}
        policy = transformer(**call)[0]
        for layer in layers:
            layer._disable_adapters = True
        with torch.no_grad():
            reference = transformer(**call)[0]
        for layer in layers:
            layer._disable_adapters = False
        target = e - clean
        m = torch.cat([mask, mask])
        size = m.expand_as(target).flatten(1).sum(1).clamp(min=1)
        pol, ref = (((v - target) ** 2 * m).flatten(1).sum(1) / size for v in (policy, reference))
        margin = (ref - pol)[:batch_size] + (pol - ref)[batch_size:]
        loss = -F.logsigmoid(500.0 / 2 * margin).mean() + 0.05 * (policy - reference).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_passes(batch_size: int, device: str) -> Callable[[], None]:
    """The forwards and the backward of a ``flow_map`` step, and its optimiser step: the frozen base on B rows, the
    difference on B rows (two for each interval, of which half of the batch has one), the student on B rows. As in the
    step, backward reaches a time embedder too: here the network's own."""
    model, layers, optimizer = adapted(device)
    transformer = model.transformer
    embedder = transformer.get_submodule(model.anatomy.time_embedder).requires_grad_(True)
    optimizer.add_param_group({"params": list(embedder.parameters())})
    batch = batch_of(model, batch_size, device)
    ((_, prompt),) = batch.condition.groups()
    sigma = torch.full((batch_size,), 0.5, device=device)
    call = {"hidden_states": batch.clean, "timestep": sigma * 1000, "return_dict": False, **prompt}

    def step() -> None:
        with torch.no_grad():
            for layer in layers:
                layer._disable_adapters = True
            transformer(**call)
            for layer in layers:
                layer._disable_adapters = False
            transformer(**call)
        (transformer(**call)[0] - batch.rejected).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def batch_of(model: Any, size: int, device: str) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        clean=torch.randn(size, 4, 8, 8, generator=generator).to(device),
        rejected=torch.randn(size, 4, 8, 8, generator=generator).to(device),
        mask=(torch.rand(size, 1, 8, 8, generator=generator) > 0.5).float().to(device),
        condition=model.encode_prompts(["one"] * size).to(device),
    )


def drawn_step(session: Any, optimizer: torch.optim.Optimizer) -> int:
    """A step of a run that draws what it trains on, down to the optimizer; returns how many forwards it made."""
    made = 0
    for result in session.steps(None, log=False):
        result.loss.backward()
        made += result.passes
    optimizer.step()
    optimizer.zero_grad()
    return made


def clock_of(device: str) -> Callable[[], float]:
    """Of what a step takes: on the CPU the time that this process computes, whatever else the machine does."""
    return time.process_time if device == "cpu" else time.perf_counter


def held_bytes() -> int:
    """Bytes of all live tensors, each storage once."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def flow_dpo(rounds: int, batch_size: int, device: str) -> dict[str, Any]:
    before = held_bytes()
    step, passes, context = ours(batch_size, device)
    step()
    held = held_bytes() - before
    seconds = interleaved(
        {"flowhooks": step, "by_hand": by_hand(batch_size, device)}, rounds=rounds, clock=clock_of(device)
    )
    weights = sum(p.numel() * p.element_size() for p in pipeline().transformer.parameters())
    context.__exit__(None, None, None)
    return {
        "what": "one masked Flow-DPO step with anchor, forward to optimiser",
        "ratio": ratio(seconds["flowhooks"], seconds["by_hand"]),
        "median_seconds": {name: round(statistics.median(s), 5) for name, s in seconds.items()},
        "forwards": passes(),
        "batch_size": batch_size,
        "rounds": rounds,
        "transformer_bytes": weights,
        "held_bytes_beside_one_transformer": held - weights,
        "machine": machine(),
    }


def anyflow(rounds: int, batch_size: int, device: str) -> dict[str, Any]:
    step, passes, context = ours(batch_size, device, ANYFLOW)
    step()
    seconds = interleaved(
        {"flowhooks": step, "bare": bare_passes(batch_size, device)}, rounds=rounds, clock=clock_of(device)
    )
    context.__exit__(None, None, None)
    return {
        "what": "one flow_map step on a frozen base, against its three forwards, its backward and its optimiser step "
        "on the bare network with the adapter",
        "ratio": ratio(seconds["flowhooks"], seconds["bare"]),
        "median_seconds": {name: round(statistics.median(s), 5) for name, s in seconds.items()},
        "forwards": passes(),
        "rows": {"base": batch_size, "difference": batch_size, "student": batch_size},
        "batch_size": batch_size,
        "rounds": rounds,
        "machine": machine(),
    }


def self_flow(rounds: int, batch_size: int, device: str) -> dict[str, Any]:
    """The teacher runs through 5 of 8 blocks without gradient: of the three units that forward and backward cost, it
    adds ``(5 / 8) / 3`` of all."""
    size = {"layers": 8, "heads": 8}
    step, passes, context = ours(batch_size, device, SELF_FLOW, **size)
    plain, _, other = ours(batch_size, device, WHOLE, **size)
    seconds = interleaved({"self_flow": step, "plain": plain}, rounds=rounds, clock=clock_of(device))
    for each in (context, other):
        each.__exit__(None, None, None)
    return {
        "what": "one Self-Flow step of a whole network with its average, against a plain step of the same with its "
        "average; the teacher's pass ends after block 5 of 8",
        "ratio": ratio(seconds["self_flow"], seconds["plain"]),
        "goal": round(1.1 * (1 + 5 / 8 / 3), 4),
        "median_seconds": {name: round(statistics.median(s), 5) for name, s in seconds.items()},
        "forwards": passes(),
        "batch_size": batch_size,
        "rounds": rounds,
        "machine": machine(),
    }


def flow_opd(rounds: int, batch_size: int, device: str) -> dict[str, Any]:
    """N steps are drawn, K states visited: a forward of a teacher, one of the anchor, and the student's forward and
    backward at each."""
    drawn, visits, size = 8, 4, {"layers": 8, "heads": 8}
    with TemporaryDirectory() as folder:
        context = flowhooks.attach(probed(device, **size), {"adapter": RUN["adapter"], "hooks": []})
        with context as session:
            with torch.no_grad():
                for p in session.parameters().values():
                    p.add_(0.01)
            session.adapter.save(Path(folder), {})
        method = {
            "prompts": ["one"] * batch_size,
            "teachers": {"one": folder},
            "num_inference_steps": drawn,
            "visits": visits,
        }
        run = {**RUN, "hooks": [], "method": {"flow_opd": method}, "training": {"train_batch_size": batch_size}}
        attached = flowhooks.attach(probed(device, **size), run)
        session = attached.__enter__()
    optimizer = torch.optim.AdamW(session.parameters().values(), lr=1e-4)
    passes: list[int] = []

    def step() -> None:
        passes.append(drawn_step(session, optimizer))

    model, layers, other = adapted(device, **size)
    batch = batch_of(model, batch_size, device)
    ((_, prompt),) = batch.condition.groups()
    sigma = torch.full((batch_size,), 0.5, device=device)
    call = {"hidden_states": batch.clean, "timestep": sigma * 1000, "return_dict": False, **prompt}

    def bare() -> None:
        with torch.no_grad():
            for _ in range(drawn):
                model.transformer(**call)
        for _ in range(visits):
            with torch.no_grad():
                model.transformer(**call)
                for layer in layers:
                    layer._disable_adapters = True
                model.transformer(**call)
                for layer in layers:
                    layer._disable_adapters = False
            (model.transformer(**call)[0] - batch.rejected).square().mean().backward()
        other.step()
        other.zero_grad()

    seconds = interleaved({"flowhooks": step, "bare": bare}, rounds=rounds, clock=clock_of(device))
    attached.__exit__(None, None, None)
    return {
        "what": f"one Flow-OPD step, {drawn} steps drawn by the pipeline and {visits} states visited by student, "
        "teacher and anchor, against as many forwards and backwards on the bare network with the adapter",
        "ratio": ratio(seconds["flowhooks"], seconds["bare"]),
        "median_seconds": {name: round(statistics.median(s), 5) for name, s in seconds.items()},
        "forwards": passes[-1],
        "batch_size": batch_size,
        "rounds": rounds,
        "machine": machine(),
    }


STEPS = {"flow_dpo": flow_dpo, "anyflow": anyflow, "self_flow": self_flow, "flow_opd": flow_opd}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=STEPS)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(STEPS[arguments.method](arguments.rounds, arguments.batch_size, arguments.device), indent=2))


if __name__ == "__main__":
    main()
