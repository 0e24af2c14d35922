"""After `detach` nothing tells that an adapter was ever there."""

from __future__ import annotations

import pytest
import torch
from lycoris import LycorisNetwork

from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.errors import AdapterError
from tests.adapters.helpers import KINDS, appearance, predict, section, train_randomly, transformer


@pytest.mark.parametrize("kind", KINDS)
def test_detach_leaves_no_trace(kind):
    model = transformer()
    frozen = list(model.parameters())[3]
    frozen.requires_grad_(False)
    before, bare = appearance(model), predict(model)
    adapter = build_adapter(model, section(kind))
    train_randomly(adapter)
    with adapter.disabled():
        predict(model)
    adapter.detach()
    assert appearance(model) == before
    assert torch.equal(predict(model), bare)
    adapter.detach()
    assert appearance(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_detach_while_disabled_leaves_no_trace(kind):
    model = transformer()
    before = appearance(model)
    adapter = build_adapter(model, section(kind))
    with adapter.disabled():
        adapter.detach()
    assert appearance(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_model_takes_another_adapter_afterwards(kind):
    model = transformer()
    for _ in range(2):
        adapter = build_adapter(model, section(kind))
        with pytest.raises(AdapterError, match="already has an adapter"):
            build_adapter(model, section("lora"))
        with pytest.raises(AdapterError, match="already has an adapter"):
            build_adapter(model, section("lycoris-locon"))
        adapter.detach()
        with pytest.raises(AdapterError, match="was detached"):
            adapter.state_dict()
        with pytest.raises(AdapterError, match="was detached"), adapter.disabled():
            pass


@pytest.mark.parametrize("kind", KINDS)
def test_a_failed_load_leaves_no_trace(kind, tmp_path):
    model = transformer()
    adapter = build_adapter(model, section(kind))
    adapter.save(tmp_path, {})
    adapter.detach()
    before = appearance(model)
    with pytest.raises(AdapterError):
        build_adapter(model, section(kind, rank=1, init_from=str(tmp_path)))
    assert appearance(model) == before
    first = model.transformer_blocks[0]
    first.attn.to_q = torch.nn.Linear(32, 34)
    before = appearance(model)
    with pytest.raises(AdapterError):
        load_adapter(model, tmp_path)
    assert appearance(model) == before


def test_lycoris_class_preset_is_put_back():
    names = [name for name in vars(LycorisNetwork) if name.isupper()]
    before = {name: getattr(LycorisNetwork, name) for name in names}
    build_adapter(transformer(), section("lycoris-loha"))
    assert {name: getattr(LycorisNetwork, name) for name in names} == before
