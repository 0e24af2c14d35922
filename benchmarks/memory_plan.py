"""Whether the plan of a run's memory is what the run allocates: ``python -m benchmarks.memory_plan``.

For each run, an update is planned on the meta device, then computed on the CPU on a network at random weights, with
torch's profiler listing every allocation. Configurations are those of the tiny pipelines with a larger network; nothing
is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.released_sizes import RELEASED, ROWS, TEXTS, Row
from flowhooks.adapters import build_adapter
from flowhooks.checks.quantization import quantized
from flowhooks.config import resolve_run
from flowhooks.config.run import Run
from flowhooks.memory.plan import Planned, changed, plan_memory
from flowhooks.memory.report import on_card, weights_before
from flowhooks.memory.step import Needs, decodes
from flowhooks.pretrained import DTYPES
from flowhooks.quantization.convert import quantize
from flowhooks.quantization.settings import configuration
from tests.families import PIPELINES, tiny

MIB, GIB = 2**20, 2**30
#: Tiny pipeline -> settings of its network that make it of 100 million weights, and of 30 million.
NETWORKS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "flux": (
        {"num_layers": 3, "num_single_layers": 5, "num_attention_heads": 8, "attention_head_dim": 96},
        {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 8, "attention_head_dim": 64},
    ),
    "sd3": (
        {"num_layers": 7, "num_attention_heads": 12, "attention_head_dim": 64, "caption_projection_dim": 768},
        {"num_layers": 5, "num_attention_heads": 8, "attention_head_dim": 64, "caption_projection_dim": 512},
    ),
}
_ROPE = {96: (32, 32, 32), 64: (16, 24, 24)}
LORA = {"type": "lora", "rank": 16}
_UPDATE = "counted update"
#: Stands for the folder of a frozen adapter beside the pipeline's folder.
TEACHER = "<teacher>"
_DRAWN = {"num_inference_steps": 4, "rewards": [{"type": "flowhooks.digits.rewards:Ink"}]}
_BLOCKS = {"block_index": 1, "teacher_block_index": 3}
#: Name -> sections of a run: every method, and what else changes what is held.
RUNS: Mapping[str, Mapping[str, Any]] = {
    "sft": {"adapter": LORA, "method": {"sft": {}}},
    "flow_dpo": {"adapter": LORA, "method": {"flow_dpo": {"norm_type": "mean", "beta": 2000.0}}},
    "anyflow": {"adapter": LORA, "method": {"anyflow": {"target_mode": "linear"}}},
    "dmd": {"adapter": LORA, "method": {"dmd": {"jumps": 2, "policy_every": 1}}},
    "self_flow": {"adapter": LORA, "method": {"self_flow": _BLOCKS}, "training": {"use_ema": True}},
    "flow_opd": {
        "adapter": LORA,
        "method": {"flow_opd": {"teachers": {"one": TEACHER}, "num_inference_steps": 4, "anchor": "base"}},
    },
    "flow_grpo": {"adapter": LORA, "method": {"flow_grpo": {"group_size": 2, **_DRAWN}}},
    **{
        name: {"adapter": LORA, "method": {name: {"group_size": 2, **_DRAWN}}}
        for name in ("diffusion_nft", "awm", "dgpo", "crd")
    },
    "adjoint_matching": {"adapter": LORA, "method": {"adjoint_matching": {**_DRAWN, "truncate": {"last_k": 2}}}},
    "layersync": {"adapter": LORA, "hooks": [{"type": "feature_alignment", **_BLOCKS}]},
    "lycoris": {"adapter": {"type": "lycoris", "algo": "lokr", "rank": 16}, "method": {"sft": {}}},
    "sft, bf16 casts": {"adapter": LORA, "method": {"sft": {}}, "training": {"mixed_precision": "bf16"}},
}


def write_folder(name: str, parts: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """The folder of a tiny pipeline with other settings of some parts, its weights left out."""
    pipe = tiny(name)
    pipe.save_config(folder)
    for part, component in pipe.components.items():
        if component is None:
            continue
        if isinstance(component, torch.nn.Module) and hasattr(component.config, "save_pretrained"):
            component.config.save_pretrained(folder / part)
        elif isinstance(component, torch.nn.Module):
            component.save_config(folder / part)
        else:
            component.save_pretrained(folder / part)
    for part, settings in parts.items():
        file = folder / part / "config.json"
        known = json.loads(file.read_text(encoding="utf-8"))
        if "attention_head_dim" in settings and "axes_dims_rope" in known and "axes_dims_rope" not in settings:
            settings = {**settings, "axes_dims_rope": _ROPE[settings["attention_head_dim"]]}
        file.write_text(json.dumps(_merged(known, settings)), encoding="utf-8")
    return folder


def _merged(known: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    inner = {key: _merged(known[key], value) for key, value in settings.items() if isinstance(value, Mapping)}
    return {**known, **settings, **inner}


def run_on(name: str, folder: Path, sections: Mapping[str, Any], batch: int = 1, **model: Any) -> Run:
    """A run on a pipeline's folder.

    Args:
        sections: of the run, beside ``model``.
        batch: samples of a micro-batch.
        model: more of the run's ``model`` section.
    """
    arguments = {k: v for k, v in (PIPELINES[name].arguments if name else {}).items() if k == "max_sequence_length"}
    written = json.dumps(sections).replace(TEACHER, str(folder.parent / "teacher"))
    document = {
        **json.loads(written),
        "model": {"pipeline_arguments": arguments, **model, "pretrained_model_name_or_path": str(folder)},
        "training": {"train_batch_size": batch, **sections.get("training", {})},
    }
    return resolve_run(document, folder / "run.json", allow_imports=True)


def write_teacher(learnt: Planned, folder: Path) -> None:
    """Write an adapter of random weights of the network beside the pipeline's folder, for runs that name a teacher."""
    network = learnt.network(torch.device("cpu"), torch.float32)
    adapter = build_adapter(network, run_on("", folder, RUNS["sft"]).adapter or {}, pipeline=learnt.model.pipe)
    for parameter in adapter.named_parameters().values():
        torch.nn.init.normal_(parameter, std=0.02)
    (folder.parent / "teacher").mkdir(exist_ok=True)
    adapter.save(folder.parent / "teacher", {})


def planned(run: Run, height: int, width: int | None = None, frames: int = 1) -> Planned:
    """The run, learnt on a twin of its pipeline, with pairs of this size, squares by default, as its data."""
    geometry = SimpleNamespace(frames=frames)
    record = SimpleNamespace(width=width or height, height=height, caption="two one", geometry=geometry)
    data = SimpleNamespace(records=(record,), provides={"image", "rejected"})
    return plan_memory(run, data)  # type: ignore[arg-type]


def measured(plan: Planned) -> tuple[Needs, int]:
    """What the same counter finds where numbers are computed, and the most that torch's profiler saw allocated: weights
    and what the update allocates."""
    device, dtype, section = torch.device("cpu"), DTYPES[plan.run.model["dtype"]], plan.run.model
    component = plan.model.component
    # What an earlier network leaves behind would be freed, and subtracted, in between.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        network, vae = plan.network(device, dtype), plan.vae(device, dtype) if plan.vae is not None else None
        if component in quantized(section):
            network = quantize(network, configuration(quantized(section)[component], "diffusers", dtype), device)
        # A network comes in fp32, and plain, first.
        gc.collect()
        built = replace(
            plan,
            run=changed(plan.run, (("model.quantization", None),)),
            network=lambda *_: network,
            vae=None if vae is None else lambda *_: vae,
        )
        with record_function(_UPDATE):
            counted = built.needs(device=device, rules="cpu")
        # The VAE and the rest of the twin stay on the host.
        vae_bytes = 0 if vae is None or decodes(plan.run) else sum(t.nbytes for t in vae.state_dict().values())
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    start = min(event.start_ns() for event in events if event.name() == _UPDATE)
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = most = 0
    for at, change in changes:
        now += change
        most = max(most, now) if at >= start else 0
    return counted, most - vae_bytes


def released(only: str | None) -> None:
    """Print the plan of networks at released sizes, which nothing here could compute."""
    print("| network | run | weights, GiB | activations, GiB | peak, GiB | of a card, GiB | published | time, s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folders: dict[str, Path] = {}
        for row in ROWS:
            if only not in (None, row.pipeline, f"{row.pipeline}: {row.name}"):
                continue
            start = time.process_time()
            name = row.pipeline
            folders[name] = folders.get(name) or write_folder(name, RELEASED[name], Path(place) / name)
            plan, needs = counted(row, folders[name])
            peak = max(needs.peak, *weights_before(plan, plan.run).values())
            print(
                f"| {name} {plan.parts[plan.model.component].numbers / 1e9:.1f}B | {row.name} | "
                f"{needs.weights / GIB:.1f} | {needs.activations / GIB:.1f} | {needs.peak / GIB:.1f} | "
                f"{on_card(peak) / GIB:.1f} | {row.published} | {time.process_time() - start:.0f} |",
                flush=True,
            )


def counted(row: Row, folder: Path) -> tuple[Planned, Needs]:
    """The plan of a row and what an update needs."""
    plan = planned(row_run(row, folder), *row.size)
    return plan, plan.needs()


def row_run(row: Row, folder: Path) -> Run:
    """The run of a row."""
    sections = {**RUNS[row.method], "training": dict(row.training)}
    if row.adapter:
        sections["adapter"] = {**LORA, **row.adapter}
    model = {"dtype": "bf16", "gradient_checkpointing": True, "pipeline_arguments": TEXTS[row.pipeline], **row.model}
    return run_on(row.pipeline, folder, sections, **model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="networks of 30 million weights")
    parser.add_argument("--edge", type=int, default=32, help="pixels of the pictures (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="samples of a micro-batch (default: %(default)s)")
    parser.add_argument("--only", metavar="NAME", help="one pipeline or one run")
    parser.add_argument("--released", action="store_true", help="plan networks of released sizes in bf16 instead")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.released:
        released(args.only)
        return
    print("| network | run | checkpointing | plan, MiB | counted, MiB | profiler, MiB | off | plan took, s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name, sizes in NETWORKS.items():
            folder = write_folder(name, {"transformer": sizes[args.small]}, Path(place) / name)
            learnt = planned(run_on(name, folder, RUNS["sft"]), args.edge)
            write_teacher(learnt, folder)
            for kind, sections in RUNS.items():
                if args.only not in (None, name, kind):
                    continue
                for checkpointing in (False, True):
                    run = run_on(name, folder, sections, args.batch, gradient_checkpointing=checkpointing)
                    plan = replace(learnt, run=run)
                    start = time.process_time()
                    needs = plan.needs(rules="cpu")
                    took = time.process_time() - start
                    counted, seen = measured(plan)
                    off = needs.peak / seen - 1
                    print(
                        f"| {name} {plan.weights['transformer'] / 1e6:.0f}M | {kind} | {checkpointing} | "
                        f"{needs.peak / MIB:.1f} | {counted.peak / MIB:.1f} | {seen / MIB:.1f} | {off:+.1%} | "
                        f"{took:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
