"""What learning a pipeline costs: seconds and network forwards, against one stock run of the same pipeline; and memory,
against one inference.

``python -m benchmarks.probe [NAME ...]`` prints JSON: time for tiny pipelines by name, memory for a FLUX of hundreds of
millions of weights at random.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine
from flowhooks.probe import probe
from flowhooks.testing import PIPELINES, tiny

ROUNDS = 3
STEPS = 3
PIXELS = 256


def forwards_of(networks: list[torch.nn.Module], work: Any) -> tuple[float, int]:
    """Seconds, and forwards that were really computed: those that reach a network's first block."""
    blocks = [next(m for m in n.modules() if isinstance(m, torch.nn.ModuleList) and len(m))[0] for n in networks]
    real = [0]
    handles = [b.register_forward_hook(lambda *_: real.__setitem__(0, real[0] + 1)) for b in blocks]
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    for handle in handles:
        handle.remove()
    return seconds, real[0]


def measure(name: str) -> dict[str, Any]:
    arguments = PIPELINES[name].arguments
    found: dict[str, list[float]] = {"probe": [], "run": []}
    forwards = {}
    for _ in range(ROUNDS):
        pipe = tiny(name)
        networks = [
            n for n in (getattr(pipe, "transformer", None), getattr(pipe, "transformer_2", None)) if n is not None
        ]
        call = {**arguments, "prompt": "a photo of two", "num_inference_steps": STEPS, "output_type": "latent"}
        seconds, forwards["run"] = forwards_of(networks, lambda pipe=pipe, call=call: pipe(**call))
        found["run"].append(seconds)
        seconds, forwards["probe"] = forwards_of(networks, lambda pipe=pipe: probe(pipe, arguments=arguments))
        found["probe"].append(seconds)
    medians = {key: round(statistics.median(values), 4) for key, values in found.items()}
    return {
        "seconds": medians,
        "ratio": round(medians["probe"] / medians["run"], 2),
        "forwards": forwards,
        "peak_bytes_of_the_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def wide_flux() -> Any:
    """A FluxPipeline whose transformer (about 280 million weights) and VAE (of FLUX.1's own widths) decide what memory
    a run takes; the text encoders are tiny."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    pipe = tiny("flux")
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=4,
        num_single_layers=8,
        attention_head_dim=64,
        num_attention_heads=16,
        joint_attention_dim=pipe.transformer.config.joint_attention_dim,
        pooled_projection_dim=pipe.transformer.config.pooled_projection_dim,
        guidance_embeds=True,
        axes_dims_rope=(8, 28, 28),
    )
    parts = {**pipe.components, "vae": vae.eval(), "transformer": transformer.eval()}
    return type(pipe)(**parts)


def one_inference(pipe: Any) -> None:
    pipe("a photo of two", height=PIXELS, width=PIXELS, num_inference_steps=2, max_sequence_length=8)


def one_probe(pipe: Any) -> None:
    probe(pipe, height=PIXELS, width=PIXELS, arguments={"max_sequence_length": 8})


WORK: Mapping[str, Callable[[Any], None]] = {"inference": one_inference, "probe": one_probe}


def peak(what: str) -> dict[str, float]:
    """Resident memory of this process, which must be fresh: after loading, and the most on top of it."""
    torch.manual_seed(0)
    pipe = wide_flux()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew from what is resident now
    loaded, start = resident("VmRSS"), time.perf_counter()
    WORK[what](pipe)
    return {
        "loaded_bytes": loaded,
        "peak_over_loaded_bytes": resident("VmHWM") - loaded,
        "seconds": round(time.perf_counter() - start, 2),
    }


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def memory() -> dict[str, Any]:
    """The peak of each, in a process of its own, in which freed memory goes back at once: what is in use counts, not
    what the C library keeps for later."""
    found = {}
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for what in WORK:
        command = [sys.executable, "-m", "benchmarks.probe", "--peak", what]
        found[what] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        )
    extra = [found[what]["peak_over_loaded_bytes"] for what in ("probe", "inference")]
    whole = [found[what]["peak_over_loaded_bytes"] + found[what]["loaded_bytes"] for what in ("probe", "inference")]
    ratios = {"ratio": round(extra[0] / extra[1], 3), "ratio_with_weights": round(whole[0] / whole[1], 4)}
    what = f"one stock inference of {PIXELS} pixels against probe(pipe), each in a fresh process (Linux)"
    return {"what": what, **found, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", choices=list(WORK), help="only this one's peak memory, of this process")
    parser.add_argument("names", nargs="*", default=["sd3", "flux", "qwen-image", "z-image", "wan"])
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(peak(arguments.peak)))
        return
    found = {name: measure(name) for name in arguments.names}
    what = f"probe(pipe) against a stock run of {STEPS} steps; medians of {ROUNDS} fresh pipelines"
    print(json.dumps({"what": what, "pipelines": found, "memory": memory(), "machine": machine()}, indent=2))


if __name__ == "__main__":
    main()
