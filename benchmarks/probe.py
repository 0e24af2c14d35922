"""What learning a pipeline costs: seconds and network forwards, against one stock run of the same pipeline.

``python -m benchmarks.probe [NAME ...]`` prints JSON, for tiny pipelines by name.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from typing import Any

import torch

from benchmarks.measure import machine
from flowhooks.probe import probe
from flowhooks.testing import PIPELINES, tiny

ROUNDS = 3
STEPS = 3


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=["sd3", "flux", "qwen-image", "z-image", "wan"])
    arguments = parser.parse_args()
    found = {name: measure(name) for name in arguments.names}
    what = f"probe(pipe) against a stock run of {STEPS} steps; medians of {ROUNDS} fresh pipelines"
    print(json.dumps({"what": what, "pipelines": found, "machine": machine()}, indent=2))


if __name__ == "__main__":
    main()
