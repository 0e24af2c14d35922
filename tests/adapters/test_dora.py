"""A DoRA against its formula, in Diffusers, over half precision and quantised weights, and where it is refused."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from flowhooks.adapters import FrozenAdapter, build_adapter, load_adapter
from flowhooks.adapters.dora import decomposed_change
from flowhooks.adapters.fit import check_file
from flowhooks.adapters.merge import merge_adapter
from flowhooks.errors import AdapterError
from flowhooks.quantization.convert import quantize
from flowhooks.quantization.plain import plain_weight
from flowhooks.quantization.settings import configuration
from flowhooks.quantization.table import SHORT
from tests.adapters.helpers import predict, section, train_randomly, transformer
from tests.families import tiny

LAYER = "transformer_blocks.0.attn.to_q"


def trained(model=None, **changes):
    model = model or transformer()
    adapter = build_adapter(model, section("dora", **changes))
    train_randomly(adapter)
    return model, adapter


def by_formula(layer, name):
    """The weight that a layer computes with, in float64."""
    weight, found = plain_weight(layer.base_layer).double(), dict(layer.named_parameters())
    change = found[f"lora_B.{name}.weight"].double() @ found[f"lora_A.{name}.weight"].double()
    moved = weight + layer.scaling[name] * change
    magnitude = found[f"lora_magnitude_vector.{name}.weight"].double()
    return magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)


def test_the_change_by_magnitudes():
    weight, change = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [2.0, -2.0]])
    found = decomposed_change(weight, change, torch.tensor([10.0, 3.0]))
    assert torch.equal(weight + found, torch.tensor([[6.0, 8.0], [3.0, 0.0]], dtype=torch.float64))


def test_stock_diffusers_loads_it_with_the_same_prediction(tmp_path):
    model, adapter = trained()
    adapter.save(tmp_path, {})
    pipe = tiny("sd3")
    pipe.transformer.load_state_dict(transformer().state_dict())
    pipe.load_lora_weights(str(tmp_path))
    assert torch.equal(predict(pipe.transformer), predict(model))
    assert not torch.allclose(predict(model), predict(transformer()), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_one_changes_no_bit_and_a_merged_one_computes_the_same(dtype):
    model = transformer().to(dtype)
    before = predict(model)
    # PEFT measures convolutions in the precision of autocast, as `check` says.
    layers = ["to_q"] if dtype == torch.bfloat16 else ["to_q", "pos_embed.proj"]
    adapter = build_adapter(model, section("dora", target_modules=layers))
    assert torch.equal(predict(model), before)
    with torch.autocast("cpu", torch.bfloat16):
        found = predict(model)
        with adapter.disabled():
            assert torch.equal(found, predict(model))
    train_randomly(adapter)
    expected = predict(model)
    merge_adapter(adapter)
    atol = 2e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(predict(model), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4", "int4"])
def test_over_quantised_weights(kind):
    block = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32))
    network = nn.Sequential(nn.ModuleList([block]))
    quantize(network, configuration(SHORT[kind], "diffusers", torch.float32), torch.device("cpu"))
    value = torch.randn(3, 64)
    before = block(value)
    adapter = build_adapter(network, section("dora", target_modules=["0.0.0"]))
    layer = adapter.layers[0]
    assert torch.equal(block(value), before)
    train_randomly(adapter)
    expected = value.double() @ by_formula(layer, adapter.name).T + layer.base_layer.bias.double()
    torch.testing.assert_close(layer(value).double(), expected, rtol=0, atol=1e-5)
    block(value).sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in adapter.parameters())


def test_weights_that_peft_cannot_read():
    network = transformer()
    network.get_submodule(LAYER).weight.quant_type = "Q8_0"
    with pytest.raises(AdapterError, match="PEFT cannot read the quantised weight of `transformer_blocks.0.attn.to_q`"):
        build_adapter(network, section("dora"))


def test_a_row_of_zeros_has_no_direction():
    model = transformer()
    model.get_submodule(LAYER).weight.data[3] = 0
    before = predict(model)
    with pytest.raises(AdapterError, match=f"`adapter.use_dora`: `{LAYER}` has outputs whose weights are all 0"):
        build_adapter(model, section("dora"))
    assert torch.equal(predict(model), before)


def test_a_run_starts_from_one_only_as_one(tmp_path):
    model, adapter = trained()
    file = adapter.save(tmp_path / "dora", {})
    again = transformer()
    build_adapter(again, section("dora", init_from=str(file)))
    assert torch.equal(predict(again), predict(model))
    plain = build_adapter(transformer(), section("lora")).save(tmp_path / "lora", {})
    for kind, start, value in (("lora", file, "true"), ("dora", plain, "false")):
        wanted = section(kind, init_from=str(start))
        with pytest.raises(AdapterError, match=f"Set `adapter.use_dora` to {value}"):
            build_adapter(transformer(), wanted)
        with pytest.raises(AdapterError, match=f"Set `adapter.use_dora` to {value}"):
            check_file(start, None, wanted)


def test_a_file_without_its_magnitudes_is_refused(tmp_path):
    file = trained(alpha=2.0)[1].save(tmp_path, {})
    with safe_open(file, "pt") as handle:
        header = {key: value for key, value in handle.metadata().items() if not key.startswith("flowhooks.")}
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if "magnitude" not in k}, tmp_path / "without.safetensors", header)
    plain = json.loads(header[LORA_ADAPTER_METADATA_KEY]) | {"transformer.use_dora": False}
    save_file(tensors, tmp_path / "hidden.safetensors", {**header, LORA_ADAPTER_METADATA_KEY: json.dumps(plain)})
    for name in ("without", "hidden"):
        for read in (load_adapter, lambda _, path: check_file(path, None)):
            with pytest.raises(AdapterError, match="`use_dora` is .*`lora_magnitude_vector`.*One of them is wrong"):
                read(transformer(), tmp_path / f"{name}.safetensors")


def test_one_that_was_never_trained_is_no_teacher(tmp_path):
    adapter = build_adapter(transformer(), section("dora"))
    adapter.save(tmp_path / "new", {})
    with pytest.raises(AdapterError, match="changes nothing"):
        FrozenAdapter(transformer(), tmp_path / "new")
    with torch.no_grad():
        adapter.named_parameters()[f"{LAYER}.lora_magnitude_vector"].mul_(1.1)
    adapter.save(tmp_path / "louder", {})
    assert FrozenAdapter(transformer(), tmp_path / "louder").describe()["idle_layers"] == len(adapter.targets) - 1
