"""A merged transformer computes what it computed with its adapter, and carries none."""

from __future__ import annotations

import pytest
import torch

from flowhooks.adapters import build_adapter, build_second
from flowhooks.adapters.merge import merge_adapter
from flowhooks.errors import AdapterError
from tests.adapters.helpers import KINDS, predict, section, train_randomly, transformer

#: Linear layers of several shapes, and a convolution.
LAYERS = ["to_q", "ff.net.0.proj", "norm_out.linear", "pos_embed.proj"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_transformer_computes_what_it_did_and_is_bare(kind):
    model, names = transformer(), dict(transformer().named_modules())
    adapter = build_adapter(model, section(kind, target_modules=LAYERS))
    train_randomly(adapter)
    wanted = predict(model)
    with adapter.disabled():
        assert (predict(model) - wanted).abs().max() > 0.1
    merge_adapter(adapter)
    torch.testing.assert_close(predict(model), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert dict(model.named_modules()).keys() == names.keys()


def test_sums_are_rounded_once():
    model = transformer().bfloat16()
    adapter = build_adapter(model, section("lora"))
    train_randomly(adapter, std=0.02)
    target = adapter.targets[0]
    values = {key: value for key, value in adapter.state_dict().items() if key.startswith(f"{target}.")}
    down, up = (next(value for key, value in values.items() if name in key) for name in ("lora_A", "lora_B"))
    weight = model.get_submodule(target).base_layer.weight.double()
    wanted = (weight + 8.0 / 2 * up.double() @ down.double()).bfloat16()
    merge_adapter(adapter)
    assert torch.equal(model.get_submodule(target).weight, wanted)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("lycoris")])
def test_what_training_drops_is_not_dropped_from_the_merged_weights(kind):
    model = transformer()
    adapter = build_adapter(model, section(kind, dropout=0.5))
    train_randomly(adapter)
    wanted = predict(model)
    model.train()
    merge_adapter(adapter)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(predict(model.eval()), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("lycoris")])
def test_only_this_adapter_is_merged(kind):
    model = transformer()
    adapter = build_adapter(model, section(kind))
    train_randomly(adapter)
    wanted = predict(model)
    second = build_second(adapter, name="critic", rank=3, alpha=4.0)
    train_randomly(second, seed=5)
    with second.alone():
        merge_adapter(adapter)
    second.detach()
    torch.testing.assert_close(predict(model), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_a_detached_adapter_and_whole_numbers_are_refused():
    model = transformer()
    adapter = build_adapter(model, section("lora"))
    layer = model.get_submodule(adapter.targets[0]).base_layer
    layer.weight = torch.nn.Parameter(layer.weight.char(), requires_grad=False)
    with pytest.raises(AdapterError, match="whole-number weights"):
        merge_adapter(adapter)
    adapter.detach()
    with pytest.raises(AdapterError, match="was detached from its transformer"):
        merge_adapter(adapter)
