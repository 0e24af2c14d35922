"""LoRA files of every family's network, and what Diffusers makes of a file."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.names import diffusers_prefix
from flowhooks.adapters.network import network_header, network_of
from flowhooks.export.dialects import pieces_of
from flowhooks.probe.runs import first_network
from tests.naming.rows import denoiser, numbers, pipeline

RANK, ALPHA = 4, 3.0


@dataclass(frozen=True)
class Source:
    """A LoRA file, and the change that it makes of every layer."""

    file: Path
    changes: dict[str, torch.Tensor]


def write(folder: Path, name: str, layers: list[str], ranks: tuple[int, ...] = (RANK,)) -> Source:
    """A LoRA of a tiny pipeline's network, as `write_for` writes it."""
    return write_for(folder, denoiser(name), layers, ranks)


def write_for(folder: Path, network: Any, layers: list[str], ranks: tuple[int, ...] = (RANK,)) -> Source:
    """As a run writes it, but for the alpha, which is in the header alone."""
    tensors, changes, rank_pattern, shapes = {}, {}, {}, network_of(network).shapes
    prefix = diffusers_prefix(type(network).__name__)
    for i, layer in enumerate(layers):
        outputs, inputs = shapes[layer]
        rank = ranks[i % len(ranks)]
        down, up = numbers(rank, inputs, seed=2 * i) / inputs**0.5, numbers(outputs, rank, seed=2 * i + 1)
        tensors[f"{prefix}.{layer}.lora_A.weight"], tensors[f"{prefix}.{layer}.lora_B.weight"] = down, up
        changes[layer] = ALPHA / rank * (up.double() @ down.double())
        if rank != RANK:
            rank_pattern[f"^{layer.replace('.', chr(92) + '.')}"] = rank
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": layers, "rank_pattern": rank_pattern}
    document = {f"{prefix}.{key}": value for key, value in settings.items()}
    header = {**network_header(network), "lora_adapter_metadata": json.dumps(document)}
    file = folder / "lora.safetensors"
    save_file(tensors, file, header)
    return Source(file, changes)


def write_kind(folder: Path, network: Any, kind: str) -> Source:
    """A LyCORIS file of one kind, ``loha``, ``lokr`` or ``locon``, on all Linear layers."""
    tensors, told = {}, network_of(network)
    layers = {layer: shape for layer, shape in told.shapes.items() if len(shape) == 2}
    for i, (layer, (outputs, inputs)) in enumerate(layers.items()):
        start = f"lycoris_{layer.replace('.', '_')}"
        shapes: dict[str, tuple[int, ...]] = {
            "loha": {
                "hada_w1_a": (outputs, 2),
                "hada_w1_b": (2, inputs),
                "hada_w2_a": (outputs, 2),
                "hada_w2_b": (2, inputs),
            },
            "lokr": {"lokr_w1": (2 - outputs % 2, 1), "lokr_w2": (outputs // (2 - outputs % 2), inputs)},
            "locon": {"lora_down.weight": (2, inputs), "lora_up.weight": (outputs, 2)},
        }[kind]
        tensors |= {f"{start}.{key}": numbers(*shape, seed=i) for key, shape in shapes.items()}
        tensors[f"{start}.alpha"] = torch.tensor(3.0)
    file = folder / f"{kind}.safetensors"
    header = {**network_header(network), "flowhooks.layers": json.dumps(layers)}
    save_file(tensors, file, header)
    changes = {piece.name: piece.change() for piece in pieces_of(read_adapter(file), told)}
    return Source(file, changes)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative to the largest entry."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def in_diffusers(name: str, file: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The changes that Diffusers makes of a file, and those at half its strength: by the pipeline's loader, where it
    has one, else the network's."""
    pipe = pipeline(name)
    called = first_network(pipe)
    bare = getattr(pipe, called)
    network = deepcopy(bare)
    setattr(pipe, called, network)
    try:
        if hasattr(pipe, "load_lora_weights"):
            pipe.load_lora_weights(str(file), adapter_name="a")
        else:
            network.load_lora_adapter(load_file(file), prefix=called, adapter_name="a")
        whole = deltas(network)
        network.set_adapters(["a"], [0.5])
        return whole, deltas(network)
    finally:
        setattr(pipe, called, bare)


def deltas(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    layers = {layer: module for layer, module in network.named_modules() if isinstance(module, LoraLayer)}
    changes = {layer: module.get_delta_weight("a").detach().double() for layer, module in layers.items()}
    return {layer: change for layer, change in changes.items() if change.any()}
