"""Merged files against the sums of the whole changes, and in the loaders they are for."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.adapters import FrozenAdapter, build_adapter, load_adapter
from flowhooks.adapters.merge import change_of
from flowhooks.adapters.merge_files import merge_files
from flowhooks.adapters.names import CONFIG_KEY, LAYERS_KEY, MERGE_KEY, NETWORK_KEY, TRANSFORMER_KEY
from flowhooks.errors import AdapterError
from flowhooks.export.dialects import export_lora
from tests.adapters.helpers import KINDS, predict, section, train_randomly, transformer
from tests.families import tiny

#: Linear layers of several shapes, and a convolution.
LAYERS = ["to_q", "ff.net.0.proj", "norm_out.linear", "pos_embed.proj"]
LOW_RANK = ["lora", "lycoris-locon"]
#: The largest rank that the change of such an adapter can have.
WHOLE = {"loha": 4, "lycoris-loha": 4, "lokr": 32, "lycoris-lokr": 32, "dora": 32}


@pytest.fixture
def saved(tmp_path):
    def write(kind="lora", seed=2, place=None, **changes):
        adapter = build_adapter(transformer(), section(kind, **{"target_modules": LAYERS, **changes}))
        train_randomly(adapter, seed)
        return adapter.save(tmp_path / (place or f"{kind}-{seed}"), {}).parent

    return write


@torch.no_grad()
def changes(path):
    """What an adapter changes, by layer, whole."""
    adapter = load_adapter(transformer(), path)
    return {name: change_of(adapter, i).double().flatten(1) for i, name in enumerate(adapter.targets)}


def total(weights, paths):
    every = [changes(path) for path in paths]
    names = {name: None for each in every for name in each}
    zero = torch.zeros(())
    return {
        name: sum((w * each.get(name, zero) for w, each in zip(weights, every, strict=True)), start=zero)
        for name in names
    }


def relative(found, wanted):
    assert found.keys() == wanted.keys()
    off = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)
    return (off / sum(float(change.square().sum()) for change in wanted.values())) ** 0.5


def header(file):
    with safe_open(file, "pt") as handle:
        return handle.metadata()


@pytest.mark.parametrize("weights", [None, [0.9, -0.4]])
@pytest.mark.parametrize("second", LOW_RANK)
def test_cat_is_exact(second, weights, saved, tmp_path):
    paths = [saved("lora", 2), saved(second, 3, rank=3, alpha=1.5)]
    merged = merge_files(paths, tmp_path / "out", method="cat", weights=weights)
    assert relative(changes(merged.file), total(weights or [0.5, 0.5], paths)) < 1e-6
    assert (merged.ranks, merged.error) == ((5,), 0)


def test_cat_of_other_layers_is_their_union(saved, tmp_path):
    paths = [saved("lora", 2, target_modules=["to_q", "to_k"]), saved("lora", 3, target_modules=["to_q", "ff.net.2"])]
    merged = merge_files(paths, tmp_path / "out", method="cat")
    wanted = total([0.5, 0.5], paths)
    assert relative(changes(merged.file), wanted) < 1e-6
    assert merged.ranks == (2, 4) and merged.layers == len(wanted)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of the network that all of them are for."""
    folder = tmp_path_factory.mktemp("base")
    transformer().save_pretrained(folder / "transformer")
    return folder


@pytest.mark.parametrize("second", KINDS)
def test_svd_is_the_best_of_its_rank(second, saved, base, tmp_path):
    paths = [saved("lora", 2), saved(second, 3, rank=3, alpha=1.5)]
    wanted = total([0.5, 0.5], paths)
    merged = merge_files(paths, tmp_path / "out", method="svd", model=base if second == "dora" else None)
    found = changes(merged.file)
    best = sum(float((torch.linalg.svdvals(change)[3:] ** 2).sum()) for change in wanted.values())
    size = sum(float(change.square().sum()) for change in wanted.values())
    assert relative(found, wanted) == pytest.approx((best / size) ** 0.5, rel=1e-4, abs=1e-6)
    assert merged.error == pytest.approx((best / size) ** 0.5, rel=1e-4, abs=1e-6)
    assert merged.ranks == (3,)


@pytest.mark.parametrize("kind", KINDS)
def test_svd_of_one_adapter_is_a_lora_of_it(kind, saved, base, tmp_path):
    """Of full rank it is the adapter itself, and any kind becomes what other programs read."""
    path, model = saved(kind), base if kind == "dora" else None
    wide = merge_files([path], tmp_path / "wide", method="svd", rank=WHOLE.get(kind), model=model)
    assert relative(changes(wide.file), changes(path)) < 1e-6
    narrow = merge_files([path], tmp_path / "narrow", method="svd", rank=1, model=model)
    assert narrow.ranks == (1,) and narrow.error > 0.1
    model, other = transformer(), transformer()
    load_adapter(model, path)
    load_adapter(other, wide.file)
    torch.testing.assert_close(predict(other), predict(model), rtol=0, atol=1e-4)


def test_factor_average_and_its_error(saved, tmp_path):
    paths = [saved("lora", seed, target_modules=None, rank=4) for seed in (2, 3, 4)]
    merged = merge_files(paths, tmp_path / "apart", method="factor_average")
    tensors = [load_file(path / "pytorch_lora_weights.safetensors") for path in paths]
    key = next(key for key in tensors[0] if "lora_A" in key)
    torch.testing.assert_close(load_file(merged.file)[key], sum(each[key] for each in tensors) / 3)
    wanted = total([1 / 3] * 3, paths)
    assert merged.error == pytest.approx(relative(changes(merged.file), wanted), rel=1e-5)
    assert merged.error == pytest.approx((2 / 3) ** 0.5, abs=0.02)

    def near(place, seed):
        generator = torch.Generator().manual_seed(seed)
        first = load_file(paths[0] / "pytorch_lora_weights.safetensors")
        for name in first:
            noise = torch.randn(first[name].shape, generator=generator) * 0.3
            first[name] = first[name] + 0.1 * noise if "lora_A" in name else noise
        (tmp_path / place).mkdir()
        save_file(first, tmp_path / place / "near.safetensors", header(paths[0] / "pytorch_lora_weights.safetensors"))
        return tmp_path / place / "near.safetensors"

    close = merge_files([near(f"near{i}", i) for i in range(3)], tmp_path / "near", method="factor_average")
    assert close.error == pytest.approx(0.08, abs=0.01)


@pytest.mark.parametrize("method", ["cat", "svd", "factor_average"])
@pytest.mark.parametrize("layers", [None, LAYERS])
def test_it_loads_everywhere(method, layers, saved, tmp_path):
    """Where ranks differ from layer to layer too."""
    second = ["to_q"] if method == "cat" and layers else layers
    paths = [saved("lora", 2, target_modules=layers), saved("lora", 3, target_modules=second)]
    file = merge_files(paths, tmp_path / "out", method=method).file
    model = transformer()
    load_adapter(model, file)
    pipe = tiny("sd3")
    assert torch.equal(predict(pipe.transformer), predict(transformer()))
    pipe.load_lora_weights(file.parent)
    assert torch.equal(predict(pipe.transformer), predict(model))
    frozen_model = transformer()
    with FrozenAdapter(frozen_model, file).alone():
        assert torch.equal(predict(frozen_model), predict(model))
    if len({tensor.shape[1] for key, tensor in load_file(file).items() if "lora_B" in key}) == 1:
        rank = 4 if method == "cat" else 2
        started = transformer()
        build_adapter(started, section("lora", rank=rank, alpha=rank, target_modules=layers, init_from=str(file)))
        assert torch.equal(predict(started), predict(model))
        assert json.loads(header(file)[CONFIG_KEY])["rank"] == rank


@pytest.mark.parametrize("dialect", ["comfyui", "kohya"])
def test_it_exports_with_ranks_that_differ(dialect, saved, tmp_path):
    paths = [saved("lora", 2, target_modules=["to_q", "ff.net.2"]), saved("lora", 3, target_modules=["ff.net.2"])]
    file = merge_files(paths, tmp_path / "out", method="cat").file
    found = load_file(export_lora(file, dialect, tmp_path / "exported"))
    name = next(key for key in found if key.endswith(".alpha") and "mlp" in key).removesuffix(".alpha")
    down = next(found[f"{name}.{key}"] for key in ("lora_A.weight", "lora_down.weight") if f"{name}.{key}" in found)
    up = next(found[f"{name}.{key}"] for key in ("lora_B.weight", "lora_up.weight") if f"{name}.{key}" in found)
    change = float(found[f"{name}.alpha"]) / len(down) * up.double() @ down.double()
    wanted = total([0.5, 0.5], paths).values()
    assert any(each.shape == change.shape and torch.allclose(each, change, atol=1e-5) for each in wanted)


def test_the_header_says_what_was_merged_and_no_folder(saved, tmp_path):
    paths = [saved("lora", 2, "ocr"), saved("lora", 3, "faces") / "pytorch_lora_weights.safetensors"]
    file = merge_files(paths, tmp_path / "out", method="cat", weights=[1, 0.25]).file
    document = json.loads(header(file)[MERGE_KEY])
    assert (document["method"], document["weights"]) == ("cat", [1.0, 0.25])
    assert [source["name"] for source in document["sources"]] == ["ocr", "faces"]
    model = transformer()
    assert [source["sha256"] for source in document["sources"]] == [FrozenAdapter(model, path).digest for path in paths]
    assert header(file)[TRANSFORMER_KEY] == "SD3Transformer2DModel"
    assert str(tmp_path) not in "".join(header(file).values())


def without_header(path):
    (file,) = path.glob("*.safetensors")
    save_file(load_file(file), file)
    return path


def test_layers_of_a_foreign_lycoris_file_are_looked_up(saved, tmp_path):
    foreign = without_header(saved("lycoris-loha", 2))
    with pytest.raises(AdapterError, match="no layer is known for `lycoris_.*`--model`"):
        merge_files([foreign], tmp_path / "out", method="svd")
    wanted = changes(foreign)
    beside = saved("lora", 3)
    merged = merge_files([foreign, beside], tmp_path / "beside", method="svd", weights=[1.0, 0.0], rank=4)
    assert relative(changes(merged.file), wanted) < 1e-6
    pipeline = tmp_path / "pipeline"
    transformer().save_pretrained(pipeline / "transformer")
    merged = merge_files([foreign], tmp_path / "model", method="svd", rank=4, model=pipeline)
    assert relative(changes(merged.file), wanted) < 1e-6
    with pytest.raises(AdapterError, match="no transformer/"):
        merge_files([foreign], tmp_path / "out", method="svd", model=tmp_path)


def test_a_lora_of_peft_itself(saved, tmp_path):
    """In PEFT's own format, with patterns and rank-stabilised scaling."""
    from peft import get_peft_model

    model = transformer()
    config = LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=["to_q", "to_k"], rank_pattern={"1.attn.to_q": 5}
    )
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    wrapped.save_pretrained(tmp_path / "peft")
    merged = merge_files([tmp_path / "peft"], tmp_path / "out", method="cat")
    assert merged.ranks == (3, 5)
    assert relative(changes(merged.file), changes(tmp_path / "peft")) < 1e-6


def test_files_tell_their_layers_where_their_keys_do_not(saved):
    for kind in KINDS:
        (file,) = saved(kind).glob("*.safetensors")
        assert (LAYERS_KEY in header(file)) == (KINDS[kind]["type"] != "lora")
        if KINDS[kind]["type"] != "lora":
            shapes = json.loads(header(file)[LAYERS_KEY])
            assert shapes["pos_embed.proj"] == [32, 4, 2, 2] and shapes["norm_out.linear"] == [64, 32]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in LOW_RANK])
@pytest.mark.parametrize("method", ["cat", "factor_average"])
def test_kinds_without_factors_are_for_svd(kind, method, saved, base, tmp_path):
    with pytest.raises(AdapterError, match="has no factors A and B.*Use method 'svd'"):
        merge_files([saved("lora", 2), saved(kind, 3)], tmp_path / "out", method=method, model=base)
    assert not (tmp_path / "out").exists()


def test_a_dora_needs_the_weights_that_it_changes(saved, base, tmp_path):
    for model, message in ((None, "a DoRA, whose change .* depends on that weight.*`--model`"), (tmp_path, "has no")):
        with pytest.raises(AdapterError, match=message):
            merge_files([saved("dora")], tmp_path / "out", method="svd", model=model)
    assert not (tmp_path / "out").exists()


def test_bad_input(saved, tmp_path):
    one, two = saved("lora", 2), saved("lora", 3)
    out = tmp_path / "out"

    def refused(message, *paths, method="cat", **options):
        with pytest.raises(AdapterError, match=message):
            merge_files(paths, out, method=method, **options)
        assert not out.exists()

    refused("No adapter")
    refused("Unknown method 'mean'", one, method="mean")
    refused("1 numbers for 2 adapters", one, two, weights=[1.0])
    refused("expected finite numbers", one, two, weights=[1.0, float("nan")])
    refused("sum of these adapters is zero", one, two, weights=[0.0, 0.0])
    refused("goes with 'svd' only", one, two, rank=2)
    refused("no layer of these adapters can use more than 4", one, two, method="svd", rank=5)
    refused("no such file", tmp_path / "nowhere", one)
    few = saved("lora", 4, target_modules=["to_q"])
    refused("adapts other layers than .*`norm_out.linear`", one, few, method="factor_average")
    refused("has rank 3, in .* it has 2", one, saved("lora", 5, rank=3), method="factor_average")

    def spoilt(change, metadata=lambda found: found):
        file = saved("lora", 6, "spoilt") / "pytorch_lora_weights.safetensors"
        tensors, found = load_file(file), header(file)
        change(tensors)
        save_file(tensors, file, metadata(found))
        return file

    key = "transformer.norm_out.linear.lora_{}.weight"

    def narrower(tensors):
        tensors[key.format("A")] = torch.ones(2, 16)

    def untold(found, **more):
        return {k: v for k, v in found.items() if k != NETWORK_KEY} | more

    refused(r"of shape \[64, 16\], and SD3Transformer2DModel has one of shape \[64, 32\]", one, spoilt(narrower))
    refused(r"of shape \[64, 16\], in .* one of \[64, 32\]", one, spoilt(narrower, untold))
    refused("`norm_out.linear` lacks a matrix", one, spoilt(lambda t: t.pop(key.format("B"))))
    other = spoilt(lambda t: None, lambda found: untold(found, **{TRANSFORMER_KEY: "FluxTransformer2DModel"}))
    refused("is for a FluxTransformer2DModel", one, other)
    (out / "sub").mkdir(parents=True)
    (out / "pytorch_lora_weights.safetensors").write_text("mine")
    with pytest.raises(AdapterError, match="exists already and is not overwritten"):
        merge_files([one, two], out, method="cat")
    assert (out / "pytorch_lora_weights.safetensors").read_text() == "mine"


@pytest.mark.filterwarnings("ignore")
def test_a_bias_has_no_place(tmp_path):
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    pipe = tiny("sd3")
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], lora_bias=True))
    metadata = _collate_lora_metadata({"transformer": pipe.transformer})
    pipe.save_lora_weights(tmp_path / "biased", get_peft_model_state_dict(pipe.transformer), **metadata)
    with pytest.raises(AdapterError, match="has a bias"):
        merge_files([tmp_path / "biased"], tmp_path / "out", method="cat")
