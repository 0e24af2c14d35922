"""What `export` writes for every family is read back with the change of every layer, by flowhooks and by Diffusers."""

from __future__ import annotations

import re

import pytest

from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.export.dialects import Exported, export_adapter, pieces_of
from flowhooks.naming import families
from tests.naming.rows import FIRST, linears, network
from tests.naming.sources import RANK, Source, error, in_diffusers, write

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


#: Layouts other than Diffusers' own that a pipeline's class reads.
FOREIGN = [
    family.name
    for family in families().values()
    if any(
        "Diffusers" in family.reads[layout]
        for layout in family.portable
        if not layout.endswith(".diffusers") or layout.startswith("lora")
    )
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
