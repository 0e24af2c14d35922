"""Every dialect carries the trained change of every layer, with alpha and rank right."""

from __future__ import annotations

import json
from argparse import ArgumentParser

import pytest
import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from peft.tuners.lora import LoraLayer as PeftLoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.adapters import build_adapter
from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.commands import export
from flowhooks.errors import AdapterError
from flowhooks.export import anyflow, export_lora, flow_map
from flowhooks.export.dialects import DIALECTS, export_adapter, pieces_of
from flowhooks.export.merged import MERGED
from tests.adapters.helpers import section, train_randomly, transformer

EVERY_LINEAR = [
    *("to_q", "to_v", "to_out.0", "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj", "ff.net.0.proj", "ff.net.2"),
    *(
        "ff_context.net.0.proj",
        "ff_context.net.2",
        "norm1.linear",
        "norm1_context.linear",
        "norm_out.linear",
        "proj_out",
    ),
    *("context_embedder", "linear_1", "linear_2"),
]


def qwen():
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    ).eval()


@torch.no_grad()
def qwen_output(model):
    generator = torch.Generator().manual_seed(1)
    return model(
        hidden_states=torch.randn(1, 16, 16, generator=generator),
        encoder_hidden_states=torch.randn(1, 7, 16, generator=generator),
        encoder_hidden_states_mask=torch.ones(1, 7).long(),
        timestep=torch.tensor([0.5]),
        img_shapes=[[(1, 4, 4)]],
        return_dict=False,
    )[0]


def trained(model, folder, **changes):
    adapter = build_adapter(model, section("lora", rank=3, alpha=7.0, **changes))
    train_randomly(adapter)
    return adapter.save(folder, {"flowhooks.run": json.dumps({"seed": 1})})


def trained_deltas(model):
    """The change of each weight as PEFT itself computes it."""
    return {
        name: layer.get_delta_weight("default").detach().double()
        for name, layer in model.named_modules()
        if isinstance(layer, PeftLoraLayer)
    }


def file_deltas(tensors, up, down):
    """alpha / rank * up @ down by layer, read from a file alone."""
    deltas = {}
    for key in tensors:
        if key.endswith(up):
            layer = key.removesuffix(up)
            lower = tensors[layer + down].double()
            deltas[layer] = float(tensors[f"{layer}.alpha"]) / lower.shape[0] * (tensors[key].double() @ lower)
    assert set(tensors) == {layer + end for layer in deltas for end in (up, down, ".alpha")}
    return deltas


class LenientCheckpoint(dict):
    """Weights the LoRA does not touch change by nothing."""

    def pop(self, key, *default):
        return super().pop(key) if key in self else torch.zeros(6, 4, dtype=torch.float64)


NAMES = {
    "comfyui": (".lora_B.weight", ".lora_A.weight", "diffusion_model."),
    "kohya": (".lora_up.weight", ".lora_down.weight", "lora_unet_"),
}


@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize("target_modules", [None, EVERY_LINEAR])
def test_sd3_changes_go_through_diffusers_own_checkpoint_converter(dialect, target_modules, tmp_path):
    model = transformer()
    expected = trained(model, tmp_path / "run", target_modules=target_modules) and trained_deltas(model)
    up, down, prefix = NAMES[dialect]
    tensors = load_file(export_lora(tmp_path / "run", dialect, tmp_path / "out"))
    assert all(key.startswith(prefix) for key in tensors)
    deltas = {key.removeprefix(prefix): delta for key, delta in file_deltas(tensors, up, down).items()}
    if dialect == "kohya":
        comfyui = load_file(export_lora(tmp_path / "run", "comfyui", tmp_path / "out"))
        dotted = [
            key.removeprefix("diffusion_model.").removesuffix(".alpha") for key in comfyui if key.endswith(".alpha")
        ]
        deltas = {name: deltas.pop(name.replace(".", "_")) for name in dotted} | deltas
    assert all(
        name.startswith(("joint_blocks.", "t_embedder.", "y_embedder.", "context_embedder", "final_layer."))
        for name in deltas
    )
    checkpoint = LenientCheckpoint({f"{name}.weight": delta for name, delta in deltas.items()})
    # The converter learns the model's size and its dual attention from these keys.
    checkpoint.setdefault("context_embedder.weight", torch.zeros(32, 4, dtype=torch.float64))
    checkpoint.setdefault("joint_blocks.0.x_block.attn2.qkv.weight", torch.zeros(96, 32, dtype=torch.float64))
    converted = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    assert not checkpoint
    for name, delta in expected.items():
        torch.testing.assert_close(
            converted[f"{name}.weight"], delta, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
    untouched = [key for key in converted if key.endswith(".weight") and key.removesuffix(".weight") not in expected]
    assert untouched and not any(converted[key].any() for key in untouched)


@pytest.mark.parametrize("dialect", ["portable", "diffusers", "comfyui", "kohya"])
def test_qwen_image_reads_dialects_back(dialect, tmp_path):
    """Diffusers knows these foreign formats for Qwen-Image, so the whole way back can be walked."""
    model = qwen()
    bare = qwen_output(model)
    trained(model, tmp_path / "run")
    ours = qwen_output(model)
    file = export_lora(tmp_path / "run", dialect, tmp_path / "out.safetensors")
    if dialect in NAMES:
        up, down, prefix = NAMES[dialect]
        found = {key.removeprefix(prefix): delta for key, delta in file_deltas(load_file(file), up, down).items()}
        for name, delta in trained_deltas(model).items():
            name = name.replace(".", "_") if dialect == "kohya" else name
            torch.testing.assert_close(found[name], delta, rtol=1e-5, atol=1e-6)
    state, metadata = QwenImagePipeline.lora_state_dict(tmp_path, weight_name=file.name, return_lora_metadata=True)
    stock = qwen()
    stock.load_lora_adapter(state, prefix="transformer", metadata=metadata)
    torch.testing.assert_close(qwen_output(stock), ours, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, bare, atol=1e-2)


@pytest.mark.parametrize("dialect", ["portable", "diffusers", "comfyui", "kohya", "musubi"])
def test_a_family_without_known_names_is_written_for_diffusers_alone(dialect, tmp_path):
    file = trained(transformer(), tmp_path)
    with safe_open(file, "pt") as handle:
        kept = {key: value for key, value in handle.metadata().items() if key != "flowhooks.network"}
        metadata = {**kept, "flowhooks.transformer": "SanaTransformer2DModel"}
    save_file(load_file(file), file, metadata)
    if dialect in ("portable", "diffusers"):
        written = export_adapter(file, dialect, tmp_path / "out")
        assert written.right_in == ("Diffusers 0.42.1",)
        assert load_file(written.file).keys() == load_file(file).keys()
        return
    with pytest.raises(AdapterError, match=r"original layer names.*this file is for SanaTransformer2DModel"):
        export_lora(file, dialect, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_diffusers_is_a_copy(tmp_path):
    file = trained(transformer(), tmp_path / "run")
    assert export_lora(file, "diffusers", tmp_path / "out").read_bytes() == file.read_bytes()


def test_our_header_goes_along_and_diffusers_does_not(tmp_path):
    file = trained(transformer(), tmp_path)
    with safe_open(export_lora(file, "kohya", None), "pt") as handle:
        metadata = handle.metadata()
    assert json.loads(metadata["flowhooks.run"]) == {"seed": 1}
    assert "lora_adapter_metadata" not in metadata


def of_diffusers(file):
    """The header of a file without what flowhooks says again in its own words."""
    with safe_open(file, "pt") as handle:
        return {k: v for k, v in handle.metadata().items() if k not in ("flowhooks.adapter", "flowhooks.trained")}


@pytest.mark.parametrize("changes", [{"alpha_pattern": {"to_q": 12.0}}, {"use_rslora": True}])
def test_alpha_of_patterns_and_rank_stabilised_files(changes, tmp_path):
    file = trained(transformer(), tmp_path)
    metadata = of_diffusers(file)
    settings = json.loads(metadata["lora_adapter_metadata"])
    settings.update({f"transformer.{key}": value for key, value in changes.items()})
    save_file(load_file(file), file, {**metadata, "lora_adapter_metadata": json.dumps(settings)})
    stock = transformer()
    stock.load_lora_adapter(load_file(file), metadata=settings, adapter_name="default")
    expected = trained_deltas(stock)
    pieces = pieces_of(read_adapter(file), None)
    assert len(pieces) == len(expected)
    for piece in pieces:
        torch.testing.assert_close(piece.change(), expected[piece.name], rtol=1e-5, atol=1e-6)


def test_nothing_is_overwritten(tmp_path):
    file = trained(transformer(), tmp_path)
    content = file.read_bytes()
    with pytest.raises(AdapterError, match="exists already"):
        export_lora(file, "diffusers", None)
    first = export_lora(file, "comfyui", None)
    with pytest.raises(AdapterError, match="exists already"):
        export_lora(file, "comfyui", first)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda key: key.replace("transformer.", "network.", 1), "layer names of no known format"),
        (lambda key: key.replace("lora_A.weight", "lora_E"), "holds more than a LoRA, LoHa or LoKr"),
        (lambda key: key.replace("lora_A.weight", "lora_magnitude_vector"), "has only one of its two matrices"),
        (lambda key: key.replace("to_q.lora_A", "to_q2.lora_A"), "only one of its two matrices"),
        (lambda key: key.replace(".attn.to_q.", ".attn.gate."), r"attn\.gate` .* has no such layer"),
    ],
)
def test_what_cannot_be_exported(rename, message, tmp_path):
    file = trained(transformer(), tmp_path)
    with safe_open(file, "pt") as handle:
        save_file({rename(key): tensor for key, tensor in load_file(file).items()}, file, handle.metadata())
    with pytest.raises(AdapterError, match=message):
        export_lora(file, "comfyui", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def without_network(file):
    """A file of which nobody can tell the sizes of layers that it does not change."""
    with safe_open(file, "pt") as handle:
        metadata = {key: value for key, value in handle.metadata().items() if key != "flowhooks.network"}
    save_file(load_file(file), file, metadata)
    return file


def test_a_layer_without_a_name_is_named_and_nothing_is_written(tmp_path):
    file = without_network(trained(transformer(), tmp_path))
    with safe_open(file, "pt") as handle:
        renamed = {key.replace(".attn.to_q.", ".attn.gate."): tensor for key, tensor in load_file(file).items()}
        header = {key: value.replace(".attn.to_q", ".attn.gate") for key, value in handle.metadata().items()}
    save_file(renamed, file, header)
    with pytest.raises(AdapterError, match=r"No original name is known for layer `transformer_blocks\.0\.attn\.gate`"):
        export_lora(file, "comfyui", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sizes_of_layers_that_do_not_change_come_from_the_model(tmp_path):
    """Stable Diffusion 3's query, key and value are one layer, and this LoRA is on queries alone."""
    model = transformer()
    file = trained(model, tmp_path / "run", target_modules=["to_q"])
    expected = load_file(export_lora(file, "comfyui", tmp_path / "told.safetensors"))
    without_network(file)
    with pytest.raises(AdapterError, match=r"how many outputs it has.*--model"):
        export_lora(file, "comfyui", tmp_path / "out")
    model.save_config(tmp_path / "base" / "transformer")
    save_file(dict(transformer().state_dict()), tmp_path / "base" / "transformer" / "model.safetensors")
    for folder in (tmp_path / "base", tmp_path / "base" / "transformer"):
        found = load_file(export_lora(file, "comfyui", tmp_path / f"{folder.name}.safetensors", model=folder))
        assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in found)


def test_a_file_that_does_not_name_its_network(tmp_path):
    file = trained(transformer(), tmp_path)
    save_file(load_file(file), file, {"format": "pt"})
    with pytest.raises(AdapterError, match=r"does not name the network.*--model"):
        export_lora(file, "portable", tmp_path / "out")
    assert export_lora(file, "diffusers", tmp_path / "out").is_file()


def test_no_other_format_is_known(tmp_path):
    with pytest.raises(AdapterError, match="Unknown format"):
        export_lora(tmp_path, "webui", None)


def test_the_command(tmp_path, capsys):
    trained(transformer(), tmp_path / "run")
    parser = ArgumentParser()
    export.add(parser)
    target = str(tmp_path / "my.safetensors")
    assert export.run(parser.parse_args([str(tmp_path / "run"), "--format", "kohya", "--output", target])) == 0
    said = capsys.readouterr().out
    assert f"Wrote {target}: " in said and "right in   ComfyUI 0.33.0, sd-scripts" in said
    assert read_header_count(tmp_path / "my.safetensors") > 0
    assert parser.parse_args(["x"]).format == "portable"
    assert (*DIALECTS, *MERGED, anyflow.FORMAT, flow_map.FORMAT) == export.FORMATS


def read_header_count(file):
    with safe_open(file, "pt") as handle:
        return len(list(handle.keys()))


def test_a_file_that_lacks_what_its_configuration_says_is_not_written(tmp_path):
    file = trained(transformer(), tmp_path / "run")
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        header = dict(opened.metadata())
    gone = next(key for key in tensors if key.endswith("add_k_proj.lora_A.weight")).removesuffix(".lora_A.weight")
    save_file({k: t for k, t in tensors.items() if not k.startswith(gone)}, tmp_path / "less.safetensors", header)
    with pytest.raises(AdapterError, match=r"has no weights for .*add_k_proj"):
        export_lora(tmp_path / "less.safetensors", "comfyui", tmp_path / "out.safetensors")
    key = "lora_adapter_metadata"
    described = {**json.loads(header[key])}
    described["transformer.r"] = 9
    save_file(tensors, tmp_path / "other.safetensors", {**of_diffusers(file), key: json.dumps(described)})
    with pytest.raises(AdapterError, match="matrices of rank 3, and its configuration says 9"):
        export_lora(tmp_path / "other.safetensors", "comfyui", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_an_approximation_never_gets_the_name_of_an_adapter(tmp_path):
    model = transformer()
    adapter = build_adapter(model, section("lokr", rank=3, alpha=7.0))
    train_randomly(adapter)
    adapter.save(tmp_path / "run", {})
    written = export_adapter(tmp_path / "run", "diffusers", None, as_lora=2).file
    assert written.name == "pytorch_lora_weights_diffusers.safetensors"
