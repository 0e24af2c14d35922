"""What `export` writes for every family is read back with the change of every layer, by flowhooks and by Diffusers."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.network import network_header
from flowhooks.export.dialects import Exported, export_adapter, pieces_of
from flowhooks.naming import families
from tests.naming.rows import FIRST, linears, network, numbers, pipeline

RANK, ALPHA = 4, 3.0
ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_out.0",
    "to_add_out",
    "to_qkv_mlp_proj",
)


@dataclass(frozen=True)
class Source:
    """A LoRA file, and the change that it makes of every layer."""

    file: Path
    changes: dict[str, torch.Tensor]


def write(folder: Path, name: str, layers: list[str], ranks: tuple[int, ...] = (RANK,)) -> Source:
    """As a run writes it, but for the alpha, which is in the header alone."""
    tensors, changes, rank_pattern = {}, {}, {}
    for i, layer in enumerate(layers):
        outputs, inputs = linears(name)[layer]
        rank = ranks[i % len(ranks)]
        down, up = numbers(rank, inputs, seed=2 * i) / inputs**0.5, numbers(outputs, rank, seed=2 * i + 1)
        tensors[f"transformer.{layer}.lora_A.weight"], tensors[f"transformer.{layer}.lora_B.weight"] = down, up
        changes[layer] = ALPHA / rank * (up.double() @ down.double())
        if rank != RANK:
            rank_pattern[f"^{layer.replace('.', chr(92) + '.')}"] = rank
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": layers, "rank_pattern": rank_pattern}
    document = {f"transformer.{key}": value for key, value in settings.items()}
    header = {**network_header(pipeline(name).transformer), "lora_adapter_metadata": json.dumps(document)}
    file = folder / "lora.safetensors"
    save_file(tensors, file, header)
    return Source(file, changes)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative to the largest entry."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def check_back(source: Source, written: Exported, name: str) -> None:
    """By our own reader, which is told the network as a run tells it."""
    read = read_adapter(written.file, network=network(name))
    found = {piece.name: piece.change() for piece in pieces_of(read, network(name))}
    kept = {layer: change for layer, change in source.changes.items() if layer not in written.left_out}
    assert found.keys() == kept.keys()
    assert max(error(found[layer], change) for layer, change in kept.items()) <= 2e-7


def chosen(name: str) -> dict[str, list[str]]:
    layers = list(linears(name))
    attention = [layer for layer in layers if layer.endswith(ATTENTION)]
    blocks: dict[str, list[str]] = {}
    for layer in layers:
        module, number, *_ = layer.split(".")[:2] + [""]
        if number.isdigit():
            blocks.setdefault(f"{module}.{number}", []).append(layer)
    one = max(blocks.values(), key=len)
    return {"attention": attention or one, "one block": one[1:], "all": layers}


FORMATS = {
    "attention": ["portable"],
    "one block": ["comfyui", "kohya"],
    "all": ["portable", "diffusers", "kohya", "lycoris"],
}


@pytest.mark.parametrize("name", FIRST.values())
def test_the_change_of_every_layer_comes_back(name, tmp_path):
    family = next(found for found in families().values() if network(name).kind in found.classes)
    for case, layers in chosen(name).items():
        folder = tmp_path / case
        folder.mkdir()
        source = write(folder, name, layers, (RANK,) if case == "attention" else (RANK, 2, 5))
        formats = list(FORMATS[case])
        if case == "all" and any("musubi-tuner" in tools for tools in family.reads.values()):
            formats.append("musubi")
        for dialect in formats:
            written = export_adapter(source.file, dialect, folder / f"{dialect}.safetensors", leave_out=True)
            check_back(source, written, name)
            assert written.right_in


def in_diffusers(name: str, file: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The changes that Diffusers makes of a file, and those at half its strength: by the pipeline's loader, where it
    has one, else the network's."""
    pipe = pipeline(name)
    bare = pipe.transformer
    network = pipe.transformer = deepcopy(bare)
    try:
        if hasattr(pipe, "load_lora_weights"):
            pipe.load_lora_weights(str(file), adapter_name="a")
        else:
            network.load_lora_adapter(load_file(file), prefix="transformer", adapter_name="a")
        whole = deltas(network)
        network.set_adapters(["a"], [0.5])
        return whole, deltas(network)
    finally:
        pipe.transformer = bare


def deltas(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    layers = {layer: module for layer, module in network.named_modules() if isinstance(module, LoraLayer)}
    changes = {layer: module.get_delta_weight("a").detach().double() for layer, module in layers.items()}
    return {layer: change for layer, change in changes.items() if change.any()}


#: Layouts other than Diffusers' own that a pipeline's class reads.
FOREIGN = [
    family.name
    for family in families().values()
    if any("Diffusers" in family.reads[layout] for layout in family.portable if layout != "transformer.diffusers")
]


@pytest.mark.parametrize("family", FIRST)
def test_diffusers_reads_what_is_right_in_it(family, tmp_path):
    """The file for Diffusers in all families, and the portable one where it is said to be right there."""
    name = FIRST[family]
    # One of each kind: blocks are alike, but for the last.
    kinds = {re.sub(r"\.\d+\.", ".#.", layer, count=1): layer for layer in linears(name)}
    source = write(tmp_path, name, list(kinds.values()), (RANK, 2))
    files = {"diffusers": export_adapter(source.file, "diffusers", tmp_path / "diffusers.safetensors")}
    if family in FOREIGN:
        files["portable"] = export_adapter(source.file, "portable", tmp_path / "portable.safetensors", leave_out=True)
    for dialect, written in files.items():
        assert any(tool.startswith("Diffusers") for tool in written.right_in)
        wanted = {layer: change for layer, change in source.changes.items() if layer not in written.left_out}
        found, half = in_diffusers(name, written.file)
        assert found.keys() == wanted.keys(), dialect
        assert max(error(found[layer], change) for layer, change in wanted.items()) <= 2e-7
        assert max(error(half[layer], change / 2) for layer, change in wanted.items()) <= 2e-7
