"""What is saved loads again, here and with the libraries' own loaders, and gives the trained model's outputs."""

from __future__ import annotations

import json

import pytest
import torch
from lycoris import create_lycoris_from_weights
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.adapters.fit import check_file
from flowhooks.errors import AdapterError
from tests.adapters.helpers import KINDS, predict, section, train_randomly, transformer
from tests.families import tiny

PEFT_KINDS = ["lora", "loha", "lokr"]
LYCORIS_KINDS = [kind for kind in KINDS if kind.startswith("lycoris")]
FILES = {
    **dict.fromkeys(["lora", "dora"], "pytorch_lora_weights.safetensors"),
    "loha": "adapter_model.safetensors",
    "lokr": "adapter_model.safetensors",
    **dict.fromkeys(LYCORIS_KINDS, "pytorch_lycoris_weights.safetensors"),
}


def trained(kind, **changes):
    model = transformer()
    adapter = build_adapter(model, section(kind, **changes))
    train_randomly(adapter)
    return model, adapter


def header(file):
    with safe_open(file, "pt") as handle:
        return handle.metadata()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_folder", [True, False])
def test_save_and_load_is_exact(kind, as_folder, tmp_path):
    model, adapter = trained(kind, dropout=0.25)
    file = adapter.save(tmp_path, {"flowhooks.run": json.dumps({"seed": 3})})
    assert file == tmp_path / FILES[kind]
    loaded_model = transformer()
    loaded = load_adapter(loaded_model, tmp_path if as_folder else file)
    assert torch.equal(predict(loaded_model), predict(model))
    assert adapter.fresh and not loaded.fresh
    assert loaded.config == adapter.config and loaded.targets == adapter.targets and loaded.kind == adapter.kind
    saved, found = adapter.state_dict(), loaded.state_dict()
    assert list(found) == list(saved) and all(torch.equal(found[key], saved[key]) for key in saved)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in loaded.parameters())
    loaded_model.train()
    assert not torch.equal(predict(loaded_model), predict(loaded_model))


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_carries_our_metadata(kind, tmp_path):
    _, adapter = trained(kind)
    file = adapter.save(tmp_path, {"flowhooks.run": json.dumps({"seed": 3})})
    metadata = header(file)
    assert json.loads(metadata["flowhooks.run"]) == {"seed": 3}
    assert json.loads(metadata["flowhooks.adapter"]) == adapter.config
    assert metadata["flowhooks.transformer"] == "SD3Transformer2DModel"
    assert metadata["format"] == "pt"


@pytest.mark.parametrize("kind", KINDS)
def test_saving_again_replaces_the_file_and_leaves_nothing_else(kind, tmp_path):
    _, adapter = trained(kind)
    adapter.save(tmp_path, {})
    names = {entry.name for entry in tmp_path.iterdir()}
    train_randomly(adapter, seed=9)
    file = adapter.save(tmp_path, {})
    assert {entry.name for entry in tmp_path.iterdir()} == names
    assert any(torch.equal(tensor, adapter.parameters()[0]) for tensor in load_file(file).values())


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip_keeps_parameter_objects(kind):
    _, adapter = trained(kind)
    saved = {key: tensor.clone() for key, tensor in adapter.state_dict().items()}
    parameters = adapter.parameters()
    train_randomly(adapter, seed=5)
    adapter.load_state_dict(saved)
    assert all(a is b for a, b in zip(parameters, adapter.parameters(), strict=True))
    assert all(torch.equal(adapter.state_dict()[key], saved[key]) for key in saved)
    assert set(adapter.named_parameters()) <= set(saved)


@pytest.mark.parametrize("kind", PEFT_KINDS)
def test_names_are_peft_names(kind):
    model, adapter = trained(kind)
    assert set(adapter.state_dict()) == set(get_peft_model_state_dict(model))


@pytest.mark.parametrize("target_modules", [None, ["to_q", "attn2.to_v", "ff.net.2"]])
def test_stock_diffusers_gives_the_same_pictures(target_modules, tmp_path):
    """Alpha differs from the rank: the file has it in the matrices, so that no loader can miss it."""
    pipe = tiny("sd3")
    adapter = build_adapter(pipe.transformer, section("lora", target_modules=target_modules))
    train_randomly(adapter)
    settings = {"prompt": "a seven", "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt"}

    def pictures(pipeline):
        return pipeline(**settings, generator=torch.Generator().manual_seed(0)).images

    ours = pictures(pipe)
    adapter.save(tmp_path, {"flowhooks.run": "{}"})
    stock = tiny("sd3")
    bare = pictures(stock)
    stock.load_lora_weights(tmp_path)
    config = stock.transformer.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (2, 2)
    assert torch.equal(pictures(stock), ours)
    assert not torch.equal(bare, ours)


def test_a_lora_is_right_without_its_header(tmp_path):
    """As tools read it that know no alpha, or none in a header; a run starts from it with its own alpha."""
    model, adapter = trained("lora", alpha=3.0)
    file = adapter.save(tmp_path, {})
    tensors = load_file(file)
    for name, layer in model.named_modules():
        if name in adapter.targets:
            up, down = (tensors[f"transformer.{name}.lora_{side}.weight"].double() for side in "BA")
            torch.testing.assert_close(up @ down, layer.get_delta_weight("default").double(), rtol=1e-5, atol=2e-7)
    assert not any(key.endswith(".alpha") for key in tensors)
    settings = json.loads(header(file)["lora_adapter_metadata"])
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (2, 2)
    again = transformer()
    started = build_adapter(again, section("lora", alpha=3.0, init_from=str(file)))
    torch.testing.assert_close(predict(again), predict(model), rtol=1e-5, atol=1e-6)
    assert all(
        torch.allclose(found, adapter.state_dict()[key], rtol=1e-6, atol=0)
        for key, found in started.state_dict().items()
    )
    check_file(file, None, section("lora", alpha=3.0))
    with pytest.raises(AdapterError, match="holds type lora, rank 2, alpha 3"):
        check_file(file, None, section("lora", alpha=2.0))


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_peft_itself_loads_the_file(kind, tmp_path):
    model, adapter = trained(kind)
    adapter.save(tmp_path, {})
    stock = transformer()
    PeftModel.from_pretrained(stock, tmp_path)
    assert torch.equal(predict(stock.eval()), predict(model))


@pytest.mark.parametrize("kind", LYCORIS_KINDS)
def test_lycoris_itself_loads_the_file(kind, tmp_path):
    model, adapter = trained(kind)
    file = adapter.save(tmp_path, {})
    stock = transformer()
    network, _ = create_lycoris_from_weights(1.0, str(file), stock)
    network.apply_to()
    assert len(network.loras) == len(adapter.targets)
    # The library's default mode adds the change to the weight, ours to the activation: the same but for rounding.
    torch.testing.assert_close(predict(stock), predict(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(predict(stock), predict(transformer()), atol=1e-2)


@pytest.mark.parametrize("kind", LYCORIS_KINDS)
def test_a_file_by_lycoris_itself_loads_here(kind, tmp_path):
    model, adapter = trained(kind)
    file = adapter.save(tmp_path, {})
    save_file(load_file(file), file)
    loaded_model = transformer()
    loaded = load_adapter(loaded_model, file)
    assert torch.equal(predict(loaded_model), predict(model))
    assert (loaded.config["algo"], loaded.config["rank"]) == (kind.removeprefix("lycoris-"), 2)


def test_a_lora_without_metadata_has_alpha_equal_to_rank(tmp_path):
    """As Diffusers reads such a file."""
    model, adapter = trained("lora", alpha=2.0)
    file = adapter.save(tmp_path, {})
    save_file(load_file(file), file)
    loaded_model = transformer()
    loaded = load_adapter(loaded_model, file)
    assert torch.equal(predict(loaded_model), predict(model))
    assert (loaded.config["rank"], loaded.config["alpha"]) == (2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_init_from_starts_at_the_saved_values(kind, tmp_path):
    model, adapter = trained(kind)
    adapter.save(tmp_path, {})
    other = transformer()
    started = build_adapter(other, section(kind, init_from=str(tmp_path)))
    assert torch.equal(predict(other), predict(model))
    assert str(tmp_path) not in "".join(header(started.save(tmp_path / "next", {})).values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [{"rank": 1}, {"alpha": 3.0}, {"target_modules": ["to_q"]}])
def test_init_from_must_fit_the_section(kind, change, tmp_path):
    _, adapter = trained(kind)
    adapter.save(tmp_path, {})
    with pytest.raises(AdapterError, match=r"\.safetensors"):
        build_adapter(transformer(), section(kind, **change, init_from=str(tmp_path)))


def test_a_lycoris_section_without_an_algorithm_is_locon():
    assert build_adapter(transformer(), section("lycoris-locon", algo=None)).config["algo"] == "locon"
    with pytest.raises(AdapterError, match="adapter.algo.*'glora'"):
        build_adapter(transformer(), section("lycoris-locon", algo="glora"))


def test_init_from_of_another_type(tmp_path):
    trained("lora")[1].save(tmp_path, {})
    with pytest.raises(AdapterError, match="adapter.type"):
        build_adapter(transformer(), section("lycoris-locon", init_from=str(tmp_path)))
    with pytest.raises(AdapterError, match="type lora"):
        build_adapter(transformer(), section("loha", init_from=str(tmp_path)))
