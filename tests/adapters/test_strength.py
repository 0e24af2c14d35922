"""The strength of every layer is the one that Diffusers' own loader gives the same file, whichever way it is loaded."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.adapters.sources import read_sources
from flowhooks.errors import AdapterError, FlowhooksWarning
from flowhooks.export.lora_file import read_lora
from flowhooks.testing import tiny
from tests.adapters.helpers import section, transformer

LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k")
KINDS = {
    "plain": ({}, {}),
    "rslora": ({"use_rslora": True}, {}),
    "alpha_pattern": ({"alpha_pattern": {LAYERS[0]: 1.0}}, {}),
    "rank_pattern": ({"rank_pattern": {LAYERS[0]: 2}}, {}),
    "alpha tensors": (None, {LAYERS[0]: 1.0, LAYERS[1]: 2.0}),
    "no metadata": (None, {}),
}


def lora(file, options, alphas):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in LAYERS:
        rank = ((options or {}).get("rank_pattern") or {}).get(layer, 4)
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.randn(rank, 32, generator=generator)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(32, rank, generator=generator)
    tensors |= {f"transformer.{layer}.alpha": torch.tensor(alpha) for layer, alpha in alphas.items()}
    header = {"r": 4, "lora_alpha": 2.0, "target_modules": list(LAYERS), **(options or {})}
    header = {f"transformer.{key}": value for key, value in header.items()}
    save_file(tensors, file, None if options is None else {LORA_ADAPTER_METADATA_KEY: json.dumps(header)})
    return file


@torch.no_grad()
def deltas(model):
    """The change of each layer's weight ``[out, in]``, by what the layer computes."""
    found = {}
    for name in LAYERS:
        layer, ones = model.get_submodule(name), torch.eye(32)
        found[name] = (layer(ones) - layer.get_base_layer()(ones)).T
    return found


def started(file, alpha):
    model = transformer()
    return model, build_adapter(
        model, section("lora", rank=4, alpha=alpha, target_modules=list(LAYERS), init_from=str(file))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_as_diffusers_loads_it(kind, tmp_path):
    options, alphas = KINDS[kind]
    file = lora(tmp_path / "lora.safetensors", options, alphas)
    alpha = 2.0 if options is not None or alphas else 4.0
    loaded = transformer()
    load_adapter(loaded, file)
    found = {"load_adapter": loaded}
    found["init_from"], adapter = started(file, alpha)
    found["saved again"] = transformer()
    load_adapter(found["saved again"], adapter.save(tmp_path / "again", {}))
    if alphas:
        # The stock loader of this pipeline knows no alpha in these names: the formula instead.
        expected = by_formula(file, alphas)
    else:
        pipe = tiny("sd3")
        pipe.transformer = transformer()
        pipe.load_lora_weights(str(file))
        expected = deltas(pipe.transformer)
    for way, model in found.items():
        for name, delta in deltas(model).items():
            torch.testing.assert_close(delta, expected[name], rtol=1e-4, atol=1e-4, msg=f"{way}, {name}")
    for layer in read_lora(file).layers:
        torch.testing.assert_close(layer.delta.float(), expected[layer.name], rtol=1e-4, atol=1e-4)
    (source,) = read_sources([file])
    for name in LAYERS:
        factors = source.factors(name)
        torch.testing.assert_close((factors.up @ factors.down).float(), expected[name], rtol=1e-4, atol=1e-4)


def by_formula(file, alphas):
    tensors = load_file(file)
    down, up = ({n: tensors[f"transformer.{n}.lora_{side}.weight"] for n in LAYERS} for side in "AB")
    return {name: alphas[name] / 4 * up[name] @ down[name] for name in LAYERS}


def test_alphas_that_the_header_contradicts(tmp_path):
    file = lora(tmp_path / "lora.safetensors", {}, {LAYERS[0]: 7.0})
    with pytest.raises(AdapterError, match=r"alpha` is 7, .* says 2\.0"):
        load_adapter(transformer(), file)


@pytest.fixture
def peft_folder(tmp_path):
    torch.manual_seed(0)
    get_peft_model(transformer(), LoraConfig(r=4, target_modules=["to_q"])).save_pretrained(tmp_path)

    def change(**options):
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **options}))
        return tmp_path

    return change


def test_an_option_of_a_newer_peft_warns(peft_folder):
    with pytest.warns(FlowhooksWarning, match="next_years_option"):
        load_adapter(transformer(), peft_folder(next_years_option=None))


def test_an_option_that_is_known_does_not(peft_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(transformer(), peft_folder())


def test_whole_modules_are_refused_in_their_own_words(peft_folder):
    with pytest.raises(AdapterError, match="`modules_to_save` is .*proj_out.*whole layers"):
        load_adapter(transformer(), peft_folder(modules_to_save=["proj_out"]))
