"""A DoRA under every tool's names: the weights that it makes are those of training, by the tool's own formula."""

from __future__ import annotations

import pytest
import torch
from lycoris import create_lycoris_from_weights
from safetensors.torch import load_file

from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.adapters.merge import merge_adapter
from flowhooks.cli import main
from flowhooks.errors import AdapterError
from flowhooks.export.dialects import export_adapter
from flowhooks.naming import family_of, places_of
from tests.adapters.helpers import predict, section, train_randomly, transformer
from tests.naming.rows import network

#: A layer of one, two parts of three, and one whose halves change places in Stable Diffusion 3.
LAYERS = ["ff.net.0.proj", "attn.to_q", "attn.to_v", "norm_out.linear"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model, a DoRA on it, and the network with the DoRA in its weights."""
    place = tmp_path_factory.mktemp("dora")
    transformer().save_pretrained(place / "model" / "transformer")
    adapter = build_adapter(transformer(), section("dora", rank=3, alpha=7.0, target_modules=LAYERS))
    train_randomly(adapter)
    adapter.save(place / "lora", {})
    return place


@pytest.fixture(scope="module")
def merged(folder):
    model = transformer()
    merge_adapter(load_adapter(model, folder / "lora"))
    return model


def natively(model):
    """Original name -> weight."""
    places = places_of(family_of(type(model).__name__), [n for n, s in network("sd3").shapes.items() if len(s) == 2])
    found = {}
    for place in places.values():
        weight = torch.cat([model.get_submodule(part).weight.detach().double() for part in place.parts])
        found[place.native] = weight.roll(len(weight) // 2, 0) if place.swaps(*weight.shape) else weight
    return found


@pytest.mark.parametrize("dialect", ["portable", "comfyui", "kohya"])
def test_original_layers_by_the_formula_of_comfyui(folder, merged, dialect, tmp_path):
    """Of a layer with parts that the file does not change, too."""
    written = export_adapter(folder / "lora", dialect, tmp_path / "out.safetensors", model=folder / "model")
    assert written.right_in == ("ComfyUI 0.8.0",)
    tensors, before, after = load_file(written.file), natively(transformer()), natively(merged)
    start, dot = ("lora_unet_", "_") if dialect == "kohya" else ("diffusion_model.", ".")
    up, down = ("lora_up", "lora_down") if dialect == "kohya" else ("lora_B", "lora_A")
    for name, weight in before.items():
        key = start + name.replace(".", dot)
        if f"{key}.dora_scale" in tensors:
            first, second = (tensors.pop(f"{key}.{each}.weight").double() for each in (down, up))
            strength = float(tensors.pop(f"{key}.alpha")) / len(first)
            scale = tensors.pop(f"{key}.dora_scale").double()
            assert scale.shape == (len(weight), 1)
            made = (weight + strength * second @ first) * scale / weight.norm(dim=1, keepdim=True)
            torch.testing.assert_close(made, after[name], rtol=0, atol=3e-7)
            assert not torch.allclose(made, weight, atol=1e-2)
        else:
            assert torch.equal(weight, after[name])
    assert not tensors


def test_lycoris_makes_the_same_weights(folder, merged, tmp_path):
    written = export_adapter(folder / "lora", "lycoris", tmp_path / "out.safetensors")
    assert written.right_in == ("LyCORIS 4.1.3",)
    model = transformer()
    built, _ = create_lycoris_from_weights(1.0, str(written.file), model)
    built.merge_to()
    assert len(built.loras) == written.layers
    torch.testing.assert_close(dict(model.named_parameters()), dict(merged.named_parameters()), rtol=0, atol=1e-6)


def test_diffusers_gets_the_file_as_it_is(folder, tmp_path):
    written = export_adapter(folder / "lora", "diffusers", tmp_path / "out.safetensors", model=folder / "model")
    assert written.right_in == ("Diffusers 0.42.1",)
    found, own = transformer(), transformer()
    load_adapter(found, written.file)
    load_adapter(own, folder / "lora")
    assert torch.equal(predict(found), predict(own))


def test_the_nearest_lora(folder, merged, tmp_path, capsys):
    command = ["export", str(folder / "lora"), "--format", "musubi", "--output", str(tmp_path / "out.safetensors")]
    assert main(command) == 2 and "--as-lora RANK`, the pipeline's folder with `--model`" in capsys.readouterr().err
    near = export_adapter(
        folder / "lora", "diffusers", tmp_path / "near.safetensors", model=folder / "model", as_lora=2
    )
    whole = export_adapter(
        folder / "lora", "diffusers", tmp_path / "all.safetensors", model=folder / "model", as_lora=64
    )
    assert 0.05 < near.error < 1 and whole.error < 1e-6
    model = transformer()
    load_adapter(model, whole.file)
    torch.testing.assert_close(predict(model), predict(merged), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("dialect", "rank"), [("comfyui", None), ("diffusers", 4)])
def test_what_depends_on_the_base_asks_for_it(folder, dialect, rank, tmp_path):
    with pytest.raises(AdapterError, match=r"is changed by a DoRA, whose change .* depends on that weight.*`--model`"):
        export_adapter(folder / "lora", dialect, tmp_path / "out.safetensors", as_lora=rank)
    assert not list(tmp_path.iterdir())


def test_foreign_magnitudes_are_not_guessed(folder, tmp_path):
    written = export_adapter(folder / "lora", "comfyui", tmp_path / "out.safetensors", model=folder / "model")
    with pytest.raises(AdapterError, match=r"dora_scale` makes it a DoRA .*which norms"):
        load_adapter(transformer(), written.file)
