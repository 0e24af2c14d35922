"""Files in the names of other programs, by the rules: as `init_from`, as a teacher, in `merge` and in `check`."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.adapters import FrozenAdapter, build_adapter, load_adapter
from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.fit import check_file
from flowhooks.adapters.merge_files import merge_files
from flowhooks.errors import AdapterError
from flowhooks.export import export_lora
from tests.adapters.helpers import predict, section, train_randomly, transformer
from tests.naming.rows import network

#: What OneTrainer, and scripts around it, put before Diffusers' own names, and what else its keys have.
ONE_TRAINER = {
    "underscores": lambda layer: f"lora_transformer_{layer.replace('.', '_')}",
    "dots": lambda layer: f"transformer.{layer}",
    "ComfyUI's prefix": lambda layer: f"diffusion_model.{layer}",
    "no prefix": lambda layer: layer,
}


@pytest.fixture
def trained(tmp_path):
    """A LoRA on Stable Diffusion 3, of which Diffusers reads no foreign names, and what the network computes."""
    model = transformer()
    adapter = build_adapter(model, section("lora", alpha=3.0, target_modules=["to_q", "to_v", "norm_out.linear"]))
    train_randomly(adapter)
    return adapter.save(tmp_path / "run", {}), predict(model)


def one_trainer(file, name, output):
    tensors = {}
    for key, tensor in load_file(file).items():
        layer, _, side = key.removeprefix("transformer.").partition(".lora_")
        start = ONE_TRAINER[name](layer)
        tensors[f"{start}.lora_{'down' if side[0] == 'A' else 'up'}.weight"] = tensor * (2 if side[0] == "B" else 1)
        tensors[f"{start}.alpha"] = torch.tensor(1.0)
    save_file(tensors, output)
    return output


@pytest.mark.parametrize("name", ["comfyui", "kohya", *ONE_TRAINER])
def test_a_foreign_file_starts_a_run_teaches_and_merges(name, trained, tmp_path):
    own, expected = trained
    if name in ONE_TRAINER:
        file = one_trainer(own, name, tmp_path / "foreign.safetensors")
    else:
        file = export_lora(own, name, tmp_path / "foreign.safetensors")
        # As another program writes it.
        save_file(load_file(file), file)
    started, taught, loaded = transformer(), transformer(), transformer()
    lora = section("lora", alpha=2.0, target_modules=["to_q", "to_v", "norm_out.linear"], init_from=str(file))
    adapter = build_adapter(started, lora)
    load_adapter(loaded, file)
    with FrozenAdapter(taught, file).alone():
        outputs = {"init_from": predict(started), "teacher": predict(taught), "load_adapter": predict(loaded)}
    model = tmp_path / "base"
    transformer().save_pretrained(model / "transformer")
    merged = transformer()
    load_adapter(merged, merge_files([file], tmp_path / "merged", method="cat", model=model).file)
    outputs["merge"] = predict(merged)
    for way, found in outputs.items():
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=lambda m, w=way: f"{w}: {m}")
    assert adapter.config["rank"] == 2
    check_file(file, model, lora)
    with pytest.raises(AdapterError, match="holds type lora, rank 2, alpha 2"):
        check_file(file, model, {**lora, "alpha": 3.0})
    if name == "dots":
        # Diffusers' own names, which need no network.
        assert merge_files([file], tmp_path / "unknown", method="cat").layers == len(adapter.targets)
    else:
        with pytest.raises(AdapterError, match="has the layer names of|has layer names of no known"):
            merge_files([file], tmp_path / "unknown", method="cat")


@pytest.mark.parametrize("kind", ["lycoris-loha", "lycoris-lokr", "lycoris-locon"])
def test_other_kinds_start_a_run_and_teach(kind, tmp_path):
    # A LoKr has no counterpart of layers that are one in the original network.
    layers = ["ff.net.2", "norm_out.linear", *(["to_q"] if kind != "lycoris-lokr" else [])]
    model = transformer()
    adapter = build_adapter(model, section(kind, target_modules=layers))
    train_randomly(adapter)
    file = export_lora(adapter.save(tmp_path / "run", {}), "comfyui", tmp_path / "foreign.safetensors")
    save_file(load_file(file), file)
    taught, started = transformer(), transformer()
    with FrozenAdapter(taught, file).alone():
        found = {"teacher": predict(taught)}
    # LoCon is LoRA under another name.
    told = {"algo": None, "type": "lora", "alpha": 2.0} if kind == "lycoris-locon" else {}
    build_adapter(started, {**section(kind, target_modules=layers, init_from=str(file)), **told})
    found["init_from"] = predict(started)
    for way, output in found.items():
        torch.testing.assert_close(output, predict(model), rtol=1e-4, atol=1e-5, msg=lambda m, w=way: f"{w}: {m}")


def test_the_header_alone_tells_the_network(trained, tmp_path):
    own, expected = trained
    file = export_lora(own, "kohya", tmp_path / "kohya.safetensors")
    found = transformer()
    load_adapter(found, merge_files([file], tmp_path / "merged", method="cat").file)
    torch.testing.assert_close(predict(found), expected, rtol=1e-4, atol=1e-5)
    back = export_lora(file, "diffusers", tmp_path / "back.safetensors")
    assert load_file(back).keys() == load_file(own).keys()
    with safe_open(back, "pt") as handle:
        assert "flowhooks.trained" not in handle.metadata()


def test_a_stacked_layer_that_all_its_parts_share(tmp_path):
    """As kohya's scripts train it: query, key and value have one `down`."""
    name = "joint_blocks_0_x_block_attn_qkv"
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(96, 2, generator=generator)
    tensors = {f"lora_unet_{name}.lora_down.weight": down, f"lora_unet_{name}.lora_up.weight": up}
    save_file(tensors, tmp_path / "lora.safetensors")
    read = read_adapter(tmp_path / "lora.safetensors", network=network("sd3"))
    for part, rows in zip("qkv", up.chunk(3), strict=True):
        layer = f"transformer_blocks.0.attn.to_{part}"
        assert torch.equal(read.tensors[f"{layer}.lora_A.weight"], down)
        assert torch.equal(read.tensors[f"{layer}.lora_B.weight"], rows)
    with pytest.raises(AdapterError, match=r"changes a weight of shape \[96, 16\]"):
        save_file(
            {**tensors, f"lora_unet_{name}.lora_down.weight": down[:, :16].contiguous()}, tmp_path / "lora.safetensors"
        )
        read_adapter(tmp_path / "lora.safetensors", network=network("sd3"))


def test_one_layer_under_two_names(tmp_path):
    names = ("diffusion_model.context_embedder", "lora_unet_context_embedder")
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 32) for name in names}
    tensors |= {f"{name}.lora_up.weight": torch.ones(32, 2) for name in names}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(AdapterError, match="holds one layer twice"):
        read_adapter(tmp_path / "lora.safetensors", network=network("sd3"))
