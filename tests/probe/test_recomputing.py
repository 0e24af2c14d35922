"""Gradient checkpointing changes no bit of a gradient, whichever blocks recompute and wherever their inputs wait."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import flowhooks
from flowhooks.errors import ModelError
from flowhooks.probe import recomputing
from flowhooks.probe.recomputing import gradient_checkpointing
from flowhooks.probe.values import tensors_in
from tests.families import learnt, tiny
from tests.families.checks import pairs

ADAPTERS = {
    "lora": {"type": "lora", "rank": 2, "alpha": 2, "dropout": 0.2},
    "lycoris": {"type": "lycoris", "algo": "lokr", "rank": 2, "alpha": 2},
}


def gradients(model, adapter, wanted, offload=False):
    run = {"adapter": ADAPTERS[adapter], "hooks": [{"type": "flow_dpo", "norm_type": "mean"}]}
    torch.manual_seed(0)
    with (
        gradient_checkpointing(model.transformer, wanted, offload=offload),
        flowhooks.attach(model, run, seed=3) as session,
    ):
        with torch.no_grad():
            # Flow-DPO tests itself on a new adapter first.
            session.step(pairs(model))
            for parameter in session.parameters().values():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        session.step(pairs(model)).loss.backward()
        return {name: p.grad for name, p in session.parameters().items()}


@cache
def plain(name, adapter):
    return gradients(learnt(name), adapter, False)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
@pytest.mark.parametrize(("wanted", "offload"), [(True, False), (2, False), (True, True), (2, True)])
def test_gradients_are_the_same_to_the_bit(name, adapter, wanted, offload):
    expected, found = plain(name, adapter), gradients(learnt(name), adapter, wanted, offload)
    assert found.keys() == expected.keys() and any(each.any() for each in expected.values())
    assert [key for key, each in expected.items() if not torch.equal(each, found[key])] == []


def test_a_network_that_gives_its_blocks_arguments_by_name():
    expected, found = (gradients(learnt("hunyuan-image"), "lora", wanted) for wanted in (False, True))
    assert [key for key, each in expected.items() if not torch.equal(each, found[key])] == []


def lists(network):
    return [each for each in network.children() if isinstance(each, nn.ModuleList)]


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_nth_block_runs_again_in_the_backward_pass(name, every):
    model = learnt(name)
    blocks = [block for each in lists(model.transformer) for block in each]
    assert len(blocks) > 1
    calls = [0] * len(blocks)

    def count(place, *_):
        calls[place] += 1

    for place, block in enumerate(blocks):
        block.register_forward_pre_hook(partial(count, place))
    with torch.no_grad():
        one = pairs(model)
    model.transformer.requires_grad_(True)
    with gradient_checkpointing(model.transformer, every):
        out = model.predict(one.clean, torch.tensor([0.4, 0.6]), one.condition)
        once = list(calls)
        assert set(once) == {once[0]}
        out.square().mean().backward()
    assert [(after - before) // before for before, after in zip(once, calls, strict=True)] == [
        int(place % every == 0) for place in range(len(blocks))
    ]


@pytest.mark.parametrize("every", [True, 2])
def test_only_the_inputs_of_recomputed_blocks_wait_on_the_host(monkeypatch, every):
    packed, given = [], set()

    class Recorded(saved_tensors_hooks):
        def __init__(self, pin_memory):
            assert not pin_memory, "there is no other device to pin memory for"
            super().__init__(lambda tensor: (packed.append(tensor.data_ptr()), tensor)[1], lambda tensor: tensor)

    monkeypatch.setattr(recomputing, "save_on_cpu", Recorded)
    model = learnt("flux")
    for place, block in enumerate(block for each in lists(model.transformer) for block in each):
        if place % int(every) == 0:
            block.register_forward_pre_hook(
                lambda _, args, kwargs: given.update(t.data_ptr() for t in tensors_in([args, kwargs])), with_kwargs=True
            )
    gradients(model, "lora", every, offload=True)
    assert packed and set(packed) <= given


def test_it_is_put_back(tiny_sd3):
    network = tiny_sd3.transformer
    before = [sorted(vars(each)) for each in network.modules()], network._gradient_checkpointing_func
    with gradient_checkpointing(network, 2):
        assert network.is_gradient_checkpointing
    after = [sorted(vars(each)) for each in network.modules()], network._gradient_checkpointing_func
    assert after == before and not network.is_gradient_checkpointing


def test_what_a_network_cannot_is_refused_with_the_reason():
    def asked(network, wanted):
        with gradient_checkpointing(network, wanted):
            pass

    with pytest.raises(ModelError, match="Linear keeps its blocks in no list.*`model.gradient_checkpointing` to true"):
        asked(nn.Linear(2, 2), 2)
    with pytest.raises(ModelError, match="does not support gradient checkpointing.*set .*to false"):
        asked(tiny("lumina").transformer, True)
