"""A pipeline that is loaded with a quantised base: which layers, what they hold, what trains on them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import flowhooks
from flowhooks.adapters import build_adapter
from flowhooks.adapters.merge import merge_adapter
from flowhooks.adapters.targets import is_adapted
from flowhooks.errors import AdapterError, ModelError
from flowhooks.kernel import Batch
from flowhooks.memory.live import Live
from flowhooks.probe import probe
from flowhooks.probe.contract import fingerprint
from flowhooks.quantization.layers import inside_blocks
from flowhooks.quantization.plain import plain_parts, plain_weight, quantized_layers
from flowhooks.quantization.table import BACKENDS, METHOD, SHORT, by_component, is_packed, stored
from flowhooks.transfer import bring
from tests.families import learnt, tiny
from tests.quantization.kinds import FLUX, KINDS, loaded, section, write_flux

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ANYFLOW = {"method": {"anyflow": {"target_mode": "linear"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_flux(tmp_path_factory.mktemp("flux"))


def settings(kind):
    return by_component(KINDS[kind], ["transformer"])["transformer"]


def batch(model):
    generator = torch.Generator().manual_seed(0)
    clean, rejected = (torch.randn(2, *model.sample_shape, generator=generator) for _ in range(2))
    return Batch(clean=clean, rejected=rejected, condition=model.encode_prompts(["a", "b"]))


def held_bytes(layer):
    """What a layer's weight takes, with what bitsandbytes keeps beside it; its tables of all values are not of one
    layer."""
    weight, state = layer.weight, getattr(layer.weight, "quant_state", None)
    parts = plain_parts(weight)
    if state is not None:
        parts = [weight.data, state.absmax, *([state.state2.absmax] if state.nested else ())]
    elif getattr(weight, "SCB", None) is not None:
        parts = [weight.data, weight.SCB]
    return sum(part.nbytes for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_blocks_are_quantised_and_all_else_is_plain(folder, kind):
    pipe = loaded(folder, KINDS[kind])
    network, plain = pipe.transformer, tiny(FLUX).transformer
    chosen = set(quantized_layers(network))
    assert chosen == {name for name, _ in inside_blocks(plain)}
    # The last projection has the name of one in a block.
    assert {"proj_out", "single_transformer_blocks.0.proj_out"} - chosen == {"proj_out"}
    assert not any(p.requires_grad for p in network.parameters())
    for name in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp"):
        weight, own = plain_weight(network.get_submodule(name)), plain.get_submodule(name).weight
        assert 0 < (weight - own).norm() < 0.15 * own.norm()


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4", "int4", "gguf", "bitsandbytes int8"])
def test_every_trained_tensor_gets_a_gradient_and_what_is_saved_fits_the_stock_pipeline(folder, kind, tmp_path):
    model = learnt(FLUX)
    network = loaded(folder, KINDS[kind]).transformer
    model.pipe.register_modules(transformer=network)
    assert not [n for n in quantized_layers(network) if n.startswith(f"{model.anatomy.time_embedder}.")]
    run = {"model": section(folder, KINDS[kind]), "adapter": {"rank": 2}, "hooks": [], **ANYFLOW}
    with flowhooks.attach(model, run) as session:
        session.step(batch(model)).loss.backward()
        silent = [n for n, p in session.parameters().items() if p.grad is None or not p.grad.isfinite().all()]
        assert silent == []
        embedder = [p for n, p in session.parameters().items() if "delta_embedder" in n]
        assert len(embedder) == 4 and all(p.grad.any() for p in embedder)
        session.adapter.save(tmp_path, {})
        with pytest.raises(AdapterError, match="quantised or whole-number weights"):
            merge_adapter(session.adapter)
    stock = tiny(FLUX)
    stock.load_lora_weights(str(tmp_path))
    assert stock.get_active_adapters()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gguf"])
def test_the_table_says_what_a_weight_takes(kind):
    from flowhooks.quantization.convert import quantize
    from flowhooks.quantization.settings import configuration

    rows, columns, dtype = 256, 512, torch.bfloat16
    block = torch.nn.Sequential(*[torch.nn.Linear(columns, rows, bias=False, dtype=dtype) for _ in range(4)])
    network = torch.nn.Sequential(torch.nn.ModuleList([block]))
    quantize(network, configuration(settings(kind), "diffusers", dtype), torch.device("cpu"))
    expected = stored(settings(kind), dtype.itemsize)
    found = [held_bytes(layer) for layer in block]
    assert found == [pytest.approx(expected.of(rows, columns), abs=16)] * 4


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4", "int4", "quanto int8", "bitsandbytes int8"])
def test_the_table_says_whether_copies_are_kept_until_the_backward_pass(kind):
    from flowhooks.quantization.convert import quantize
    from flowhooks.quantization.settings import configuration

    layers = [torch.nn.Linear(512, 512, bias=False, dtype=torch.bfloat16) for _ in range(4)]
    network = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Sequential(*layers)]))
    quantize(network, configuration(settings(kind), "diffusers", torch.bfloat16), torch.device("cpu"))
    value = torch.randn(4, 512, dtype=torch.bfloat16, requires_grad=True)
    block = network[0][0]
    block(value).sum().backward()
    gc.collect()
    live = Live()
    live.own("weights", [part for p in network.parameters() for part in plain_parts(p)])
    before = live.now
    with live:
        result = block(value)
        held = (live.now - before) / (4 * 512 * 512 * 2)
        result.sum().backward()
    assert (held > 0.9) if BACKENDS[settings(kind)[METHOD]].copies else (held < 0.5)


def test_text_encoders_are_quantised_too_and_only_they_change_what_is_cached(folder):
    plain, network, both = (
        loaded(folder, value)
        for value in (None, "int8", {"transformer": "int8", "text_encoder": "nf4", "text_encoder_2": "int4"})
    )
    assert len(quantized_layers(both.text_encoder)) == 12
    # A class of Transformers keeps one layer of each block in 32 bits.
    kept = {n for n in quantized_layers(both.text_encoder_2) if n.endswith(".wo")}
    assert quantized_layers(both.text_encoder_2) and not kept
    model = learnt(FLUX)
    prints = [fingerprint(pipe, model.contract, model.arguments) for pipe in (plain, network, both)]
    assert prints[0] == prints[1] != prints[2]


def test_layers_that_are_named_stay_as_they_are(folder):
    kept = {**SHORT["int8"], "modules_to_not_convert": ["to_q", "transformer_blocks.1"]}
    pipe = loaded(folder, {"transformer": kept})
    names = quantized_layers(pipe.transformer)
    assert "transformer_blocks.0.attn.to_k" in names and "single_transformer_blocks.0.proj_out" in names
    assert not [n for n in names if n.endswith("to_q") or n.startswith("transformer_blocks.1.")]


def test_a_component_that_a_pipeline_has_not_is_named(folder):
    with pytest.raises(ModelError, match="'text_encoder_9', which this pipeline does not have"):
        loaded(folder, {"text_encoder_9": "int8"})


@pytest.mark.parametrize("kind", ["int8", "nf4", "quanto int8"])
def test_a_second_time_on_an_embedder_that_came_quantised_is_trained(kind):
    """As in a pipeline whose files are quantised as a whole."""
    from flowhooks.quantization import convert
    from flowhooks.quantization.settings import configuration

    model = learnt(FLUX)
    embedder = model.anatomy.time_embedder
    made = configuration(settings(kind), "diffusers", torch.float32)
    names = [f"{embedder}.{name}" for name in ("linear_1", "linear_2")]
    convert._QUANTIZE[settings(kind)[METHOD]](model.transformer, names, made, torch.device("cpu"))
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": [], **ANYFLOW}) as session:
        copied = session.model.interval.delta_embedder
        assert quantized_layers(copied) == []
        assert torch.equal(copied.linear_1.weight, plain_weight(model.transformer.get_submodule(names[0])))
        session.step(batch(model)).loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in copied.parameters())


@pytest.mark.parametrize("kind", ["nf4", "gguf", "int4"])
def test_adapters_that_need_the_shape_of_a_weight_go_on_weights_that_have_it(folder, kind):
    network = loaded(folder, KINDS[kind]).transformer
    section = {"rank": 2, "alpha": 2, "dropout": 0.0, "target_modules": ["to_q"], "init_from": None}
    lokr = {"type": "lokr", "algo": None, **section}
    if is_packed(settings(kind)):
        with pytest.raises(AdapterError, match=r"is packed; use `adapter.type` 'lycoris' with `adapter.algo` 'lokr'"):
            build_adapter(network, lokr)
        assert not is_adapted(network)
        lokr = {**lokr, "type": "lycoris", "algo": "lokr"}
    adapter = build_adapter(network, lokr)
    layer, value = network.get_submodule(adapter.targets[0]), torch.randn(2, 32)
    layer(value).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in adapter.parameters())
    adapter.detach()


@pytest.mark.parametrize("kind", ["int8", "int4", "gguf"])
def test_tokens_have_times_of_their_own_on_quantised_layers(folder, kind):
    """What learns them walks through the network, which then still can be moved."""
    model = probe(loaded(folder, KINDS[kind]), height=16, width=16, arguments={"max_sequence_length": 8})
    method = {"self_flow": {"block_index": 0, "teacher_block_index": 1}}
    run = {"adapter": {"type": "lora", "rank": 2}, "method": method, "training": {"use_ema": True}}
    with flowhooks.attach(model, run) as session:
        session.step(batch(model)).loss.backward()
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())
    model.transformer.to("cpu")


def test_a_quantised_network_in_its_place_is_not_moved(folder):
    network = loaded(folder, KINDS["int8"]).transformer
    kept = [weakref.ref(each) for each in network.parameters()]
    with pytest.raises(RuntimeError):
        network.to("cpu")
    bring(network, torch.device("cpu"))
    assert all(each() is not None for each in kept)
