"""LoRA files that say the strength of their layers in every way there is, and what each changes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k")
RANK, ALPHA = 4, 2.0
#: Name -> what Diffusers' metadata says beside rank and alpha (None: there is none), and the alpha tensors by place.
KINDS: dict[str, tuple[dict[str, Any] | None, dict[int, float]]] = {
    "plain": ({}, {}),
    "rslora": ({"use_rslora": True}, {}),
    "alpha_pattern": ({"alpha_pattern": {0: 1.0}}, {}),
    "rank_pattern": ({"rank_pattern": {0: 2}}, {}),
    "all at once": ({"use_rslora": True, "alpha_pattern": {0: 1.0}, "rank_pattern": {0: 2}}, {}),
    "alpha tensors": (None, {0: 1.0, 1: 2.0}),
    "no metadata": (None, {}),
}


def write_lora(
    file: Path,
    options: Mapping[str, Any] | None,
    alphas: Mapping[int, float],
    layers: Sequence[str] = LAYERS,
    width: int = 32,
) -> Path:
    """A LoRA in the Diffusers format on layers of ``width`` inputs and outputs, of rank `RANK` and alpha `ALPHA` where
    nothing else is said. Patterns and alphas name a layer by its place."""
    named = {
        key: {layers[place]: number for place, number in value.items()} if key.endswith("_pattern") else value
        for key, value in (options or {}).items()
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in layers:
        rank = named.get("rank_pattern", {}).get(layer, RANK)
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(rank, width, generator=generator)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(width, rank, generator=generator)
    tensors |= {f"transformer.{layers[place]}.alpha": torch.tensor(alpha) for place, alpha in alphas.items()}
    header = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(layers), **named}
    header = {f"transformer.{key}": value for key, value in header.items() if value is not None}
    save_file(tensors, file, None if options is None else {LORA_ADAPTER_METADATA_KEY: json.dumps(header)})
    return file


def by_formula(
    file: Path, options: Mapping[str, Any] | None, alphas: Mapping[int, float], layers: Sequence[str] = LAYERS
) -> dict[str, Tensor]:
    """The change of each layer's weight ``[out, in]``, worked out from what `write_lora` was told."""
    tensors, told = load_file(file), options or {}
    found = {}
    for place, name in enumerate(layers):
        down, up = (tensors[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
        rank = len(down)
        stated = alphas.get(place, rank if options is None else ALPHA)
        alpha = told.get("alpha_pattern", {}).get(place, stated)
        found[name] = alpha / (math.sqrt(rank) if told.get("use_rslora") else rank) * up @ down
    return found


@torch.no_grad()
def changed(network: nn.Module, changes: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network whose weights have the changes in them."""
    copy = deepcopy(network)
    for name, change in changes.items():
        copy.get_submodule(name).weight += change
    return copy


@torch.no_grad()
def deltas(network: Any, layers: Sequence[str] = LAYERS) -> dict[str, Tensor]:
    """The change of each layer's weight ``[out, in]``, by what PEFT's layer computes."""
    found = {}
    for name in layers:
        layer = network.get_submodule(name)
        ones = torch.eye(layer.in_features)
        found[name] = (layer(ones) - layer.get_base_layer()(ones)).T
    return found


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], way: str = "") -> None:
    for name, change in expected.items():
        torch.testing.assert_close(found[name], change, rtol=1e-4, atol=1e-4, msg=f"{way}, {name}")
