"""Blocks that live on the host change no bit of a gradient, compute with nothing that is there, and take the memory of
two blocks.

The device of these tests is the CPU too. There a copy is brought in as for another device, and freed as there.
"""

from __future__ import annotations

import gc
import weakref
from contextlib import ExitStack, contextmanager
from functools import cache

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import flowhooks
from flowhooks.errors import ModelError
from flowhooks.memory.live import Live
from flowhooks.probe.offloading import BlockOffload, idle_settings
from flowhooks.probe.recomputing import gradient_checkpointing, repeated_blocks
from tests.families import learnt
from tests.families.checks import pairs
from tests.probe.test_recomputing import ADAPTERS

CPU = torch.device("cpu")
KINDS = {**ADAPTERS, "dora": {**ADAPTERS["lora"], "use_dora": True}}
RUN = {"adapter": ADAPTERS["lora"], "hooks": [{"type": "flow_dpo", "norm_type": "mean"}]}
SELF_FLOW = {"type": "feature_alignment", "source": "self_flow", "block_index": 0, "teacher_block_index": 1}


def leaves_of(tensor):
    """The plain tensors that a tensor is made of."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [leaf for name in tensor.__tensor_flatten__()[0] for leaf in leaves_of(getattr(tensor, name))]


class Watched(TorchDispatchMode):
    """Notes every operator that reads a weight on the host, besides those that copy it or only look at its form."""

    LOOKING = ("copy_", "empty_like", "detach", "_to_copy", "alias", "view")

    def __init__(self, offload):
        super().__init__()
        self.host = {each.untyped_storage()._cdata for weight in offload.weights for each in leaves_of(weight)}
        self.copies, self.reading = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for each in tree_iter((args, kwargs)):
            for leaf in leaves_of(each) if isinstance(each, torch.Tensor) else ():
                if leaf.untyped_storage()._cdata in self.host:
                    name = func.__name__.split(".")[0]
                    self.copies += name == "copy_"
                    if name not in self.LOOKING:
                        self.reading.add(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def offloaded(model, share=1.0, every=1, **more):
    """The network of a model with its blocks on the host, and with gradient checkpointing."""
    model.transformer.requires_grad_(False)
    offload = BlockOffload(model.transformer, CPU, share=share, every=every)
    with offload.open(), gradient_checkpointing(model.transformer, every, **more):
        yield offload


def gradients(model, run, step=None):
    """Of the second step of a run, once what is trained has moved."""
    torch.manual_seed(0)
    with flowhooks.attach(model, run, seed=3) as session:
        with torch.no_grad():
            # Flow-DPO tests itself on a new adapter first.
            session.step(pairs(model))
            for parameter in session.parameters().values():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        batch = pairs(model)
        with step or ExitStack():
            session.step(batch).loss.backward()
        return {name: p.grad for name, p in session.parameters().items()}


def differing(expected, found):
    assert found.keys() == expected.keys() and any(each is not None and each.any() for each in expected.values())
    return [key for key, each in expected.items() if each is not None and not torch.equal(each, found[key])]


@cache
def plain(name, adapter):
    return gradients(learnt(name), {**RUN, "adapter": KINDS[adapter]})


@pytest.mark.parametrize(
    ("name", "adapter", "setting"),
    [
        ("sd3", "lora", {}),
        ("sd3", "dora", {"share": 0.5}),
        ("flux", "lora", {"share": 0.5}),
        ("flux", "lycoris", {"every": 2, "offload": True}),
        ("wan", "lycoris", {"offload": True}),
    ],
)
def test_gradients_are_the_same_to_the_bit_and_nothing_computes_with_what_is_on_the_host(name, adapter, setting):
    model = learnt(name)
    with offloaded(model, **setting) as offload:
        watched = Watched(offload)
        found = gradients(model, {**RUN, "adapter": KINDS[adapter]}, watched)
    assert differing(plain(name, adapter), found) == []
    assert watched.reading == set() and watched.copies >= len(offload.weights)


def test_levels_of_tokens_find_the_names_of_weights_that_are_copies():
    run = {"adapter": ADAPTERS["lora"], "hooks": [SELF_FLOW], "training": {"use_ema": True}}
    expected, model = gradients(learnt("sd3"), run), learnt("sd3")
    with offloaded(model):
        assert differing(expected, gradients(model, run)) == []


def quantised(name):
    model = learnt(name)
    quantize_(model.transformer.transformer_blocks, Int8WeightOnlyConfig(), filter_fn=lambda m, _: type(m) is nn.Linear)
    return model


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated")
def test_quantised_weights_move_with_their_scales():
    expected, model = gradients(quantised("flux"), RUN), quantised("flux")
    with offloaded(model) as offload:
        watched = Watched(offload)
        found = gradients(model, RUN, watched)
        integers = [each for weight in offload.weights for each in leaves_of(weight) if each.dtype == torch.int8]
        assert sum(each.nbytes for each in integers) > offload.bytes / 3
    assert differing(expected, found) == []
    assert watched.reading == set() and watched.copies > len(offload.weights)


def of_eight_blocks():
    """An SD3 of eight blocks of which each has more numbers than all that is computed with them."""
    model = learnt("sd3")
    network = model.transformer
    config = {**network.config, "num_layers": 8, "num_attention_heads": 4, "attention_head_dim": 16}
    config |= {"caption_projection_dim": 64, "dual_attention_layers": ()}
    torch.manual_seed(0)
    model.pipe.register_modules(transformer=type(network).from_config(config).eval())
    del model.__dict__["_typical_weight"]
    return model


def bytes_of(block):
    return sum(p.nbytes for p in block.parameters())


@cache
def peak(share, every):
    """Bytes: the most alive in two steps, without the weights on the host; those weights; a block's weights."""
    model = of_eight_blocks()
    network = model.transformer
    with ExitStack() as stack:
        away = stack.enter_context(offloaded(model, share, every)) if share else None
        stack.enter_context(gradient_checkpointing(network, every))
        session = stack.enter_context(flowhooks.attach(model, RUN, seed=3))
        batch, live = pairs(model), Live()
        live.own("weights", set(network.parameters()) - set(away.weights if away else ()))
        live.start()
        with live:
            # In the first, nobody knows yet which block follows which.
            for _ in range(2):
                session.step(batch).loss.backward()
    return live.peak, away.bytes if away else 0, max(map(bytes_of, repeated_blocks(network)))


@pytest.mark.parametrize(("share", "every", "count"), [(1.0, 1, 8), (0.5, 1, 4), (1.0, 2, 4)])
def test_the_peak_falls_by_what_is_away_but_for_two_blocks(share, every, count):
    everything, (least, away, block) = peak(0, every)[0], peak(share, every)
    # The last block of an SD3 is smaller than the others.
    assert (count - 1) * block < away <= count * block
    # When Python frees what a step computed is not the same every time.
    assert least == pytest.approx(everything - away + 2 * block, abs=block / 4)


class Stopped(BaseException):
    """As Ctrl-C is."""


@pytest.mark.parametrize("stop", [Stopped, RuntimeError])
@pytest.mark.parametrize("at", ["forward", "recomputation"])
def test_whatever_ends_a_step_leaves_the_weights_in_their_places_and_frees_the_copies(stop, at):
    model = learnt("sd3")
    network = model.transformer
    block = list(repeated_blocks(network))[1]
    before = {name: (id(p), p.data_ptr()) for name, p in network.named_parameters()}
    seen, calls = [], []

    def raising(module, args):
        seen.extend(weakref.ref(p) for p in module.parameters())
        calls.append(torch._C._current_graph_task_id() >= 0)
        if calls[-1] == (at == "recomputation") and stopping:
            raise stop("in the middle")

    handle = block.ff.register_forward_pre_hook(raising)
    with offloaded(model) as offload:
        torch.manual_seed(0)
        with flowhooks.attach(model, RUN, seed=3) as session:
            batch, stopping = pairs(model), False
            session.step(batch).loss.backward()
            stopping = True
            with pytest.raises(stop):
                session.step(batch).loss.backward()
            own = {name.replace(".base_layer", ""): p for name, p in network.named_parameters() if "lora_" not in name}
            assert {name: (id(p), p.data_ptr()) for name, p in own.items()} == before
            stopping = False
            session.step(batch).loss.backward()
            assert all(p.grad.isfinite().all() for p in session.parameters().values())
    handle.remove()
    assert {name: (id(p), p.data_ptr()) for name, p in network.named_parameters()} == before
    gc.collect()
    kept = {id(p) for p in network.parameters()}
    assert [each() for each in seen if each() is not None and id(each()) not in kept] == []
    assert offload._ahead is None


def test_a_network_is_left_as_it_was():
    model = learnt("flux")
    network = model.transformer
    modules = list(network.modules())
    before = [(type(m), sorted(vars(m)), {k: id(p) for k, p in m._parameters.items()}) for m in modules]
    with offloaded(model):
        gradients(model, RUN)
    after = [(type(m), sorted(vars(m)), {k: id(p) for k, p in m._parameters.items()}) for m in network.modules()]
    assert after == before


def test_a_network_that_moves_leaves_its_blocks_where_they_are():
    network = learnt("sd3").transformer
    offload = BlockOffload(network, CPU)
    with offload.open():
        offload.move(torch.device("meta"))
        own = set(offload.weights)
        assert own and all(p.device.type == "cpu" for p in own)
        assert {p.device.type for p in network.parameters() if p not in own} == {"meta"}
        assert own < set(network.parameters())


def test_blocks_that_cannot_be_found_or_moved_are_refused():
    with pytest.raises(ModelError, match="Linear keeps its blocks in no list.*`model.offload` to 'none'"):
        BlockOffload(nn.Linear(2, 2), CPU)
    network = learnt("sd3").transformer
    first = next(repeated_blocks(network)).ff.net[2]
    # As bitsandbytes' weights are, whose scales are beside them.
    first.weight.quant_state = torch.ones(2)
    with pytest.raises(
        ModelError, match="a weight 'weight' that is a Parameter, which is moved with numbers beside it"
    ):
        BlockOffload(network, CPU)


def test_a_copy_has_what_others_wrote_on_its_weight():
    """Also on one that was made ahead of that."""
    model = learnt("sd3")
    block = list(repeated_blocks(model.transformer))[1]
    weight, found = block.ff.net[2].weight, []
    block.ff.net[2].register_forward_hook(lambda module, *_: found.append(module.weight))
    with offloaded(model), torch.no_grad():
        batch = pairs(model)
        for note in ("first", "second"):
            weight.note = note
            for _ in range(2):
                model.predict(batch.clean, torch.tensor([0.4, 0.6]), batch.condition)
    assert [copy.note for copy in found] == ["first", "first", "second", "second"]
    assert all(copy is not weight and torch.equal(copy, weight) for copy in found)


@pytest.mark.parametrize(
    ("share", "every", "said"),
    [
        (0.0, 0, []),
        (0.0, 1, []),
        (1.0, 1, []),
        (0.01, 1, ["`model.offload` keeps 1 of them"]),
        (0.0, 99, ["only the first one recomputes"]),
        (1.0, 99, ["only the first one recomputes", "`model.offload` keeps 1 of them"]),
        (0.5, 2, ["`model.offload` keeps 2 of them"]),
    ],
)
def test_settings_that_save_no_memory_are_told(share, every, said):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))

    found = list(idle_settings(Deep(), share, every))
    assert len(found) == len(said) and all(words in line for words, line in zip(said, found, strict=True))
