"""``flowhooks env``: print the facts that a bug report should hold."""

from __future__ import annotations

import json
import platform
from argparse import ArgumentParser, Namespace
from typing import Any

from flowhooks.printing import say, say_lines

NAME = "env"
HELP = "print versions, devices and usable attention backends"

PACKAGES = (
    "flowhooks", "torch", "diffusers", "transformers", "accelerate", "peft", "lycoris-lora", "safetensors", "datasets",
    "huggingface_hub", "numpy", "pillow", "jsonschema", "xformers", "flash-attn", "kernels",
    "torchao", "bitsandbytes", "optimum-quanto", "gguf",
)  # fmt: skip


def add(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: Namespace) -> int:
    found = environment()
    if args.json:
        say_lines(json.dumps(found, indent=2).split("\n"))
        return 0
    say(f"{'python':<18} {found['python']} on {found['platform']}")
    for name, version in found["packages"].items():
        say(f"{name:<18} {version or 'not installed'}")
    for device in found["devices"]:
        say(f"{'device':<18} {device}")
    for name, refusal in found["attention_backends"].items():
        say(f"{'attention':<18} {name}: {'usable' if refusal is None else refusal}")
    return 0


def environment() -> dict[str, Any]:
    """Return versions, devices, and for each attention backend None or the reason why it cannot be used."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    from flowhooks.checks.machine import backend_refusal, version_of

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "devices": _devices(),
        "attention_backends": {each.value: backend_refusal(each.value) for each in AttentionBackendName},
    }


def _devices() -> list[str]:
    import torch

    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        devices.append(f"cuda:{i} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices
