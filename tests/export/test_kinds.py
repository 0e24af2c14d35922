"""LoHa, LoKr and LoCon under every tool's names; no tool's file has a layer that it would drop."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.adapters import build_adapter
from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.network import network_header, network_told
from flowhooks.errors import AdapterError
from flowhooks.export.dialects import export_adapter, pieces_of
from tests.adapters.helpers import section, train_randomly, transformer
from tests.naming.rows import linears, network
from tests.naming.sources import error, write

#: A layer of one, a part of three, and one whose halves change places in Stable Diffusion 3.
LAYERS = ["ff.net.0.proj", "attn.to_q", "attn.to_v", "norm_out.linear"]


def trained(kind, folder, targets=LAYERS):
    adapter = build_adapter(transformer(), section(kind, alpha=3.0, target_modules=targets))
    train_randomly(adapter)
    return adapter.save(folder, {})


def changes(file, **told):
    return {piece.name: piece.change() for piece in pieces_of(read_adapter(file, **told), network("sd3"))}


@pytest.mark.parametrize("dialect", ["portable", "comfyui", "kohya", "lycoris"])
@pytest.mark.parametrize("kind", ["loha", "lycoris-loha", "lycoris-locon"])
def test_other_kinds_come_back_from_every_tools_names(kind, dialect, tmp_path):
    file = trained(kind, tmp_path / "run")
    expected = changes(file)
    written = export_adapter(file, dialect, tmp_path / "out.safetensors")
    found = changes(written.file, network=network("sd3"))
    assert found.keys() == expected.keys() and len(found) > 6
    assert max(error(found[layer], change) for layer, change in expected.items()) <= 2e-7
    assert any("ComfyUI" in tool for tool in written.right_in) and "Diffusers 0.42.1" not in written.right_in[:1]


@pytest.mark.parametrize("kind", ["lokr", "lycoris-lokr"])
def test_a_lokr_stands_under_native_names_where_nothing_is_stacked(kind, tmp_path):
    file = trained(kind, tmp_path / "alone", ["ff.net.0.proj", "norm_out.linear"])
    found = changes(export_adapter(file, "comfyui", tmp_path / "out.safetensors").file, network=network("sd3"))
    assert max(error(found[layer], change) for layer, change in changes(file).items()) <= 2e-7
    file = trained(kind, tmp_path / "fused")
    with pytest.raises(AdapterError, match=r"a stack of lokr changes is not one of them.*--as-lora RANK"):
        export_adapter(file, "comfyui", tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize("dialect", ["diffusers", "comfyui"])
def test_what_a_format_cannot_hold_is_turned_into_a_lora_when_asked(dialect, tmp_path):
    file = trained("lycoris-lokr", tmp_path / "run")
    if dialect == "diffusers":
        with pytest.raises(AdapterError, match=r"lokr, and Diffusers reads plain LoRA only .*--as-lora RANK"):
            export_adapter(file, dialect, tmp_path / "no.safetensors")
    near = export_adapter(file, dialect, tmp_path / "near.safetensors", as_lora=4)
    whole = export_adapter(file, dialect, tmp_path / "whole.safetensors", as_lora=64)
    assert 0.05 < near.error < 1 and whole.error < 1e-6
    expected, found = changes(file), changes(near.file, network=network("sd3"))
    off = sum(float((found[layer] - change).square().sum()) for layer, change in expected.items())
    size = sum(float(change.square().sum()) for change in expected.values())
    assert near.error == pytest.approx((off / size) ** 0.5, rel=1e-4)
    with safe_open(near.file, "pt") as handle:
        assert "flowhooks.layers" not in handle.metadata()


#: Format -> family, the layers of a file, and those of which its tool drops the key.
DROPPED = {
    "kohya": ("flux", ["transformer_blocks.0.attn.to_out.0", "norm_out.linear", "proj_out"], "sd-scripts"),
    "comfyui": ("cosmos25", ["transformer_blocks.0.attn1.to_q", "crossattn_proj.0"], "ComfyUI"),
    "musubi": ("wan", ["blocks.0.attn1.to_q", "proj_out"], "musubi-tuner"),
    "portable": ("cosmos25", ["transformer_blocks.0.attn1.to_q", "crossattn_proj.0"], "ComfyUI"),
}


@pytest.mark.parametrize("dialect", DROPPED)
def test_a_layer_that_the_tool_drops_is_an_error_unless_left_out(dialect, tmp_path):
    name, layers, tool = DROPPED[dialect]
    source = write(tmp_path, name, layers)
    with pytest.raises(AdapterError, match=rf"{tool} would drop `{layers[1]}`.*--leave-out"):
        export_adapter(source.file, dialect, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    written = export_adapter(source.file, dialect, tmp_path / "out", leave_out=True)
    assert written.left_out == tuple(layers[1:]) and written.layers == 1
    assert any(found.startswith(tool) for found in written.right_in)
    assert len(load_file(written.file)) == (2 if dialect == "portable" else 3)


#: Family, layers -> the prefix of the layout that is right in most tools, and tools that are named as right.
PORTABLE = {
    "Flux2 without the layer that Diffusers mixes up": (
        "flux2",
        ["transformer_blocks.0.attn.to_q", "x_embedder"],
        "diffusion_model.double_blocks.",
        ["ComfyUI", "Diffusers"],
    ),
    "Flux2 with it": (
        "flux2",
        ["transformer_blocks.0.attn.to_q", "norm_out.linear"],
        "transformer.transformer_blocks.",
        ["ComfyUI", "Diffusers"],
    ),
    "Flux2 with it and a time embedder": (
        "flux2",
        ["norm_out.linear", "time_guidance_embed.timestep_embedder.linear_1"],
        "diffusion_model.",
        ["ComfyUI"],
    ),
    "Chroma": ("chroma", ["x_embedder"], "transformer.x_embedder", ["ComfyUI", "Diffusers"]),
    "Chroma with guidance layers": (
        "chroma",
        ["x_embedder", "distilled_guidance_layer.in_proj"],
        "diffusion_model.",
        ["ComfyUI"],
    ),
    "HunyuanVideo's blocks": (
        "hunyuan-video",
        ["transformer_blocks.0.attn.to_q"],
        "diffusion_model.double_blocks.0.img_attn_qkv",
        ["ComfyUI", "musubi-tuner"],
    ),
    "HunyuanVideo": ("hunyuan-video", ["transformer_blocks.0.attn.to_q", "proj_out"], "diffusion_model.", ["ComfyUI"]),
    "Qwen-Image's blocks": (
        "qwen-image",
        ["transformer_blocks.0.attn.to_q"],
        "diffusion_model.transformer_blocks.",
        ["ComfyUI", "Diffusers", "musubi-tuner"],
    ),
    "Wan": ("wan", ["blocks.0.attn1.to_q", "proj_out"], "diffusion_model.", ["ComfyUI", "Diffusers"]),
}


@pytest.mark.parametrize("case", PORTABLE)
def test_the_portable_layout_is_the_one_that_is_right_in_most_tools(case, tmp_path):
    name, layers, prefix, tools = PORTABLE[case]
    written = export_adapter(write(tmp_path, name, layers).file, "portable", tmp_path / "out.safetensors")
    tensors = load_file(written.file)
    assert any(key.startswith(prefix) for key in tensors)
    assert all(key.startswith(prefix.split(".")[0]) and not key.endswith(".alpha") for key in tensors)
    assert [tool.split()[0] for tool in written.right_in] == tools
    with safe_open(written.file, "pt") as handle:
        assert ("lora_adapter_metadata" in handle.metadata()) == prefix.startswith("transformer.")
        assert "flowhooks.trained" not in handle.metadata()


def test_musubi_reads_other_names_in_each_family(tmp_path):
    layer = {"z-image": "layers.0.attention.to_q", "hunyuan-video": "transformer_blocks.0.attn.to_q"}
    keys = {}
    for name, own in layer.items():
        (tmp_path / name).mkdir()
        written = export_adapter(write(tmp_path / name, name, [own]).file, "musubi", None)
        keys[name] = min(load_file(written.file))
    assert keys["z-image"] == "lora_unet_layers_0_attention_to_q.alpha"
    assert keys["hunyuan-video"] == "lora_unet_double_blocks_0_img_attn_qkv.alpha"
    with pytest.raises(AdapterError, match="format 'musubi' is known for .*; this file is for SD3Transformer2DModel"):
        export_adapter(write(tmp_path, "sd3", ["proj_out"]).file, "musubi", None)


def test_a_header_names_no_other_class_of_diffusers():
    for kind in ("AutoencoderKL", "UNet3DConditionModel", "DiffusionPipeline", "os"):
        told = network_told({"flowhooks.transformer": kind, "flowhooks.network": "{}"}, "a file")
        assert told.kind == kind and told.shapes == {}


def test_a_header_whose_network_cannot_be_built(tmp_path):
    model = transformer()
    header = network_header(model)
    settings = json.loads(header["flowhooks.network"])
    assert not any(key.startswith("_") for key in settings)
    assert network("sd3").shapes.keys() >= linears("sd3").keys()
    source = write(tmp_path, "sd3", ["transformer_blocks.0.attn.to_q"])
    for change, message in (({"num_layers": 10**6}, "`num_layers` is 1000000"), ({"patch_size": "x"}, "makes no SD3")):
        with safe_open(source.file, "pt") as handle:
            metadata = {**handle.metadata(), "flowhooks.network": json.dumps({**settings, **change})}
        tensors = load_file(source.file)
        save_file(tensors, tmp_path / "bad.safetensors", metadata)
        with pytest.raises(AdapterError, match=f"bad.safetensors.*{message}"):
            export_adapter(tmp_path / "bad.safetensors", "comfyui", tmp_path / "out.safetensors")
