"""A second adapter beside the first: alone in its own block, nowhere else, and gone without a trace."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from flowhooks.adapters import build_adapter, build_second, load_adapter
from flowhooks.errors import AdapterError
from tests.adapters.helpers import KINDS, appearance, forward, predict, section, train_randomly, transformer

PEFT = [kind for kind in KINDS if not kind.startswith("lycoris")]
per_kind = pytest.mark.parametrize("kind", PEFT)


def pair(model, kind, **changes):
    first = build_adapter(model, section(kind, **changes))
    train_randomly(first)
    return first, build_second(first, name="critic", rank=3, alpha=4.0)


def everything(model) -> dict:
    """`appearance`, and the keys of every dict that a module holds."""
    inside = {
        name: {key: sorted(map(str, value)) for key, value in vars(module).items() if isinstance(value, dict)}
        for name, module in model.named_modules()
    }
    return {**appearance(model), "inside": inside, "configs": sorted(model.peft_config)}


@per_kind
@pytest.mark.parametrize("switched", [False, True])
def test_detach_leaves_the_first_as_it_was(kind, switched):
    model = transformer()
    first = build_adapter(model, section(kind))
    train_randomly(first)
    before, trained = everything(model), predict(model)
    second = build_second(first, name="critic", rank=3, alpha=4.0)
    train_randomly(second, seed=5)
    with second.alone() if switched else nullcontext():
        predict(model)
    second.detach()
    assert everything(model) == before
    assert torch.equal(predict(model), trained)
    second.detach()
    first.detach()


@per_kind
def test_either_may_go_first(kind):
    model = transformer()
    bare, looks = predict(model), appearance(model)
    first, second = pair(model, kind)
    first.detach()
    second.detach()
    assert appearance(model) == looks and torch.equal(predict(model), bare)


@per_kind
def test_alone_it_is_a_model_of_its_own(kind):
    """The network with only such an adapter on it, and the bare one while it is fresh."""
    model = transformer()
    bare = predict(model)
    first, second = pair(model, kind)
    trained = predict(model)
    with second.alone():
        torch.testing.assert_close(predict(model), bare, rtol=0, atol=1e-6)
    train_randomly(second, seed=5)
    with second.alone():
        found = predict(model)
    lone = transformer()
    only = build_adapter(lone, section(kind, rank=3, alpha=4.0))
    train_randomly(only, seed=5)
    assert torch.equal(found, predict(lone))
    assert not torch.equal(found, trained)
    assert torch.equal(predict(model), trained)
    with first.disabled():
        assert torch.equal(predict(model), bare)


@per_kind
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_go_where_the_forward_went(kind, checkpointing):
    model = transformer().train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    first, second = pair(model, kind)
    train_randomly(second, seed=5)
    assert all(parameter.requires_grad for adapter in (first, second) for parameter in adapter.parameters())
    with second.alone():
        forward(model).square().mean().backward()
    assert all(parameter.grad is None for parameter in first.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in second.parameters())
    gradients = [parameter.grad.clone() for parameter in second.parameters()]
    forward(model).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in first.parameters())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, second.parameters(), strict=True))


@per_kind
def test_the_file_holds_the_first_only(kind, tmp_path):
    model = transformer()
    first, second = pair(model, kind)
    train_randomly(second, seed=5)
    trained = predict(model)
    first.save(tmp_path, {})
    fresh = transformer()
    load_adapter(fresh, tmp_path)
    assert torch.equal(predict(fresh), trained)


@per_kind
def test_the_module_holds_the_live_parameters(kind):
    _, second = pair(transformer(), kind)
    held = dict(second.as_module().named_parameters())
    assert held.keys() == second.named_parameters().keys()
    assert all(held[name] is parameter for name, parameter in second.named_parameters().items())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PEFT])
def test_it_needs_one_of_pefts(kind):
    with pytest.raises(AdapterError, match="`adapter.type` is 'lycoris'. Use 'lora'"):
        build_second(build_adapter(transformer(), section(kind)), name="critic", rank=3, alpha=4.0)


def test_it_needs_a_first_and_a_name_of_its_own():
    with pytest.raises(AdapterError, match="no adapter to add a second one to"):
        build_second(None, name="critic", rank=3, alpha=4.0)
    first, _ = pair(transformer(), "lora")
    for name in ("critic", "default"):
        with pytest.raises(AdapterError, match="already has an adapter named"):
            build_second(first, name=name, rank=3, alpha=4.0)
    first.detach()
    with pytest.raises(AdapterError, match="was detached from its transformer"):
        build_second(first, name="other", rank=3, alpha=4.0)
