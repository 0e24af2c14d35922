"""The adapter's two states: on, it trains; off, the model is the bare one, and everything is put back."""

from __future__ import annotations

import pytest
import torch

from flowhooks.adapters import Adapter, build_adapter
from flowhooks.adapters.lycoris_adapter import LycorisAdapter
from tests.adapters.helpers import KINDS, forward, predict, section, train_randomly, transformer

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_disabled_is_the_bare_model_bit_for_bit(kind, dtype):
    model = transformer().to(dtype)
    bare = predict(model)
    adapter = build_adapter(model, section(kind))
    train_randomly(adapter)
    trained = predict(model)
    with adapter.disabled():
        assert torch.equal(predict(model), bare)
    assert not torch.equal(trained, bare)
    assert torch.equal(predict(model), trained)


def test_disabled_is_the_bare_model_under_autocast(kind):
    model = transformer()
    with torch.autocast("cpu", torch.bfloat16):
        bare = predict(model)
        adapter = build_adapter(model, section(kind))
        train_randomly(adapter)
        with adapter.disabled():
            assert torch.equal(predict(model), bare)
        assert not torch.equal(predict(model), bare)


def test_a_fresh_adapter_is_the_bare_model_under_autocast(kind):
    """Else Flow-DPO's margin would not start at exactly 0."""
    model = transformer()
    with torch.autocast("cpu", torch.bfloat16):
        bare = predict(model)
        build_adapter(model, section(kind))
        assert torch.equal(predict(model), bare)


def test_a_fresh_adapter_changes_nothing(kind):
    model = transformer()
    bare = predict(model)
    adapter = build_adapter(model, section(kind))
    assert isinstance(adapter, Adapter)
    torch.testing.assert_close(predict(model), bare, rtol=0, atol=1e-6)


def test_nested_and_interrupted(kind):
    model = transformer()
    bare = predict(model)
    adapter = build_adapter(model, section(kind))
    train_randomly(adapter)
    trained = predict(model)
    with adapter.disabled():
        with pytest.raises(RuntimeError, match="stop"), adapter.disabled():
            raise RuntimeError("stop")
        assert torch.equal(predict(model), bare)
    assert torch.equal(predict(model), trained)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient_after_a_reference_pass(kind, checkpointing):
    model = transformer().train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    adapter = build_adapter(model, section(kind))
    train_randomly(adapter)
    with adapter.disabled(), torch.no_grad():
        reference = forward(model)
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    (forward(model) - reference).square().mean().backward()
    silent = [name for name, p in adapter.named_parameters().items() if p.grad is None or not p.grad.any()]
    assert silent == []
    own = {id(parameter) for parameter in adapter.parameters()}
    assert all(not p.requires_grad and p.grad is None for p in model.parameters() if id(p) not in own)


def test_checkpointed_gradients_equal_plain_ones(kind):
    gradients = []
    for checkpointing in (False, True):
        model = transformer().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        adapter = build_adapter(model, section(kind))
        train_randomly(adapter)
        forward(model).square().mean().backward()
        gradients.append([parameter.grad for parameter in adapter.parameters()])
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(*gradients, strict=True))


def test_state_found_is_restored_not_a_default(kind):
    """A switch that was already off, or a multiplier that is not one, is left as it was."""
    model = transformer()
    adapter = build_adapter(model, section(kind))
    train_randomly(adapter)
    if isinstance(adapter, LycorisAdapter):
        for i, lora in enumerate(adapter.network.loras):
            lora.multiplier = 0.25 + i / 100
    else:
        for layer in adapter.layers[::2]:
            layer._disable_adapters = True
    before = predict(model)
    with adapter.disabled(), adapter.disabled():
        pass
    if isinstance(adapter, LycorisAdapter):
        assert [lora.multiplier for lora in adapter.network.loras] == [
            0.25 + i / 100 for i in range(len(adapter.network.loras))
        ]
    else:
        assert [layer._disable_adapters for layer in adapter.layers] == [i % 2 == 0 for i in range(len(adapter.layers))]
    assert torch.equal(predict(model), before)


def test_a_forward_wrapped_by_others_keeps_running(kind):
    """Offloading replaces `forward` on a layer; the reference pass must not skip it."""
    model = transformer()
    bare = predict(model)
    adapter = build_adapter(model, section(kind))
    train_randomly(adapter)
    calls = []
    layer = model.get_submodule(adapter.targets[0])
    wrapped = layer.forward

    def counting(*args, **kwargs):
        calls.append(1)
        return wrapped(*args, **kwargs)

    layer.forward = counting
    with adapter.disabled():
        assert torch.equal(predict(model), bare)
    assert calls == [1]
    assert layer.forward is counting


def test_parameters_are_fp32_on_a_bf16_base_and_small_steps_count(kind):
    model = transformer().to(torch.bfloat16)
    adapter = build_adapter(model, section(kind))
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    assert model.dtype == torch.bfloat16
    train_randomly(adapter, std=0.05)
    output = forward(model)
    assert output.dtype == torch.bfloat16
    output.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in adapter.parameters())


def test_dropout_acts_in_training_only(kind):
    model = transformer()
    adapter = build_adapter(model, section(kind, dropout=0.5))
    train_randomly(adapter)
    assert torch.equal(predict(model), predict(model))
    model.train()
    assert not torch.equal(predict(model), predict(model))
    model.eval()
    assert torch.equal(predict(model), predict(model))
