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
from torch.profiler import ProfilerActivity, profile

from flowhooks.adapters import build_adapter
from flowhooks.config import resolve_run
from flowhooks.config.run import Run
from flowhooks.memory.plan import Planned, plan_memory
from flowhooks.memory.report import lines
from flowhooks.memory.step import Needs
from flowhooks.pretrained import DTYPES
from flowhooks.testing import PIPELINES, tiny

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
#: Tiny pipeline -> settings of its parts, of the size of a released model, by hand: FLUX.1, and SD3.5-medium without
#: its third text encoder, whose place its pipeline fills with zeros.
RELEASED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "flux": {
        "transformer": {
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "num_attention_heads": 24,
            "attention_head_dim": 128,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "axes_dims_rope": (16, 56, 56),
        },
        "text_encoder": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
            "vocab_size": 49408,
        },
        "text_encoder_2": {
            "d_model": 4096,
            "d_ff": 10240,
            "d_kv": 64,
            "num_layers": 24,
            "num_decoder_layers": 24,
            "num_heads": 64,
            "vocab_size": 32128,
            "feed_forward_proj": "gated-gelu",
        },
        "vae": {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "latent_channels": 16,
            "layers_per_block": 2,
            "norm_num_groups": 32,
        },
    },
    "sd3": {
        "transformer": {
            "sample_size": 128,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "num_attention_heads": 24,
            "attention_head_dim": 64,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "dual_attention_layers": tuple(range(13)),
        },
        "text_encoder": {"hidden_size": 768, "projection_dim": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        "text_encoder_2": {
            "hidden_size": 1280,
            "projection_dim": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
        },
        "vae": {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "latent_channels": 16,
            "layers_per_block": 2,
            "norm_num_groups": 32,
        },
    },
}
#: Tokens of the text of released pipelines.
TOKENS = {"flux": 512, "sd3": 256}
_ROPE = {96: (32, 32, 32), 64: (16, 24, 24)}
LORA = {"type": "lora", "rank": 16}
#: Stands for the folder of a frozen adapter beside the pipeline's folder.
TEACHER = "<teacher>"
_DRAWN = {"num_inference_steps": 4, "rewards": [{"type": "flowhooks.digits.rewards:Ink"}]}
_BLOCKS = {"block_index": 1, "teacher_block_index": 3}
#: Name -> sections of a run: every method, and what else changes what is held.
RUNS: Mapping[str, Mapping[str, Any]] = {
    "sft": {"adapter": LORA, "method": {"sft": {}}},
    "flow_dpo": {"adapter": LORA, "method": {"flow_dpo": {"norm_type": "mean", "beta": 2000.0}}},
    "anyflow": {"adapter": LORA, "method": {"anyflow": {"target_mode": "linear"}}},
    "self_flow": {"adapter": LORA, "method": {"self_flow": _BLOCKS}, "training": {"use_ema": True}},
    "flow_opd": {
        "adapter": LORA,
        "method": {"flow_opd": {"teachers": {"one": TEACHER}, "num_inference_steps": 4, "anchor": "base"}},
    },
    "flow_grpo": {"adapter": LORA, "method": {"flow_grpo": {"group_size": 2, **_DRAWN}}},
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
        if "axes_dims_rope" in known and "axes_dims_rope" not in settings:
            settings = {**settings, "axes_dims_rope": _ROPE[settings["attention_head_dim"]]}
        file.write_text(json.dumps({**known, **settings}), encoding="utf-8")
    return folder


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


def planned(run: Run, edge: int) -> Planned:
    """The run, learnt on a twin of its pipeline, with pairs of squares of ``edge`` pixels as its data."""
    record = SimpleNamespace(width=edge, height=edge, caption="two one", geometry=SimpleNamespace(frames=1))
    data = SimpleNamespace(records=(record,), provides={"image", "rejected"})
    return plan_memory(run, data)  # type: ignore[arg-type]


def measured(plan: Planned) -> tuple[Needs, int]:
    """What the same counter finds where numbers are computed, and the most that torch's profiler saw allocated: weights
    and what the update allocates."""
    device, dtype = torch.device("cpu"), DTYPES[plan.run.model["dtype"]]
    # Built before, as a network comes in fp32 first.
    network, vae = plan.network(device, dtype), plan.vae(device, dtype) if plan.vae is not None else None
    built = replace(plan, network=lambda *_: network, vae=None if vae is None else lambda *_: vae)
    # What an earlier network leaves behind would be freed, and subtracted, in between.
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        counted = built.needs(device=device, rules="cpu")
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = most = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    for _, change in changes:
        now += change
        most = max(most, now)
    return counted, most


def released(only: str | None) -> None:
    """Print the plan of networks at released sizes, which nothing here could compute."""
    print("| network | run | checkpointing | weights, GiB | activations, GiB | peak, GiB | phase | processor time, s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for name, parts in RELEASED.items():
            if only not in (None, name):
                continue
            folder = write_folder(name, parts, Path(place) / name)
            model: dict[str, Any] = {"dtype": "bf16", "pipeline_arguments": {"max_sequence_length": TOKENS[name]}}
            start = time.process_time()
            learnt = planned(run_on(name, folder, RUNS["sft"], **model), 1024)
            print(f"learning took {time.process_time() - start:.1f} s of processor time", flush=True)
            for kind in ("sft", "flow_dpo"):
                for checkpointing in (True, False):
                    run = run_on(name, folder, RUNS[kind], gradient_checkpointing=checkpointing, **model)
                    start = time.process_time()
                    plan = replace(learnt, run=run)
                    needs = plan.needs()
                    for line in lines(plan, needs) if checkpointing else ():
                        print(f"memory     {line}")
                    print(
                        f"| {name} {learnt.weights['transformer'] / 1e9:.1f}B | {kind} | {checkpointing} | "
                        f"{needs.weights / GIB:.1f} | {needs.activations / GIB:.1f} | {needs.peak / GIB:.1f} | "
                        f"{needs.phase} | {time.process_time() - start:.1f} |",
                        flush=True,
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="networks of 30 million weights")
    parser.add_argument("--edge", type=int, default=32, help="pixels of the pictures (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="samples of a micro-batch (default: %(default)s)")
    parser.add_argument("--only", metavar="NAME", help="one pipeline or one run")
    parser.add_argument(
        "--released", action="store_true", help="plan networks of released sizes at 1024 pixels in bf16 instead"
    )
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
