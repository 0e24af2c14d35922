"""The strength of every layer is the one that Diffusers' own loader gives the same file, whichever way it is loaded."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.adapters.sources import read_sources
from flowhooks.errors import AdapterError, FlowhooksWarning
from flowhooks.export.lora_file import read_lora
from flowhooks.testing import tiny
from tests.adapters.helpers import section, transformer
from tests.adapters.strength_files import KINDS, LAYERS, by_formula, deltas, same, write_lora


def started(file, alpha):
    model = transformer()
    return model, build_adapter(
        model, section("lora", rank=4, alpha=alpha, target_modules=list(LAYERS), init_from=str(file))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_as_diffusers_loads_it(kind, tmp_path):
    options, alphas = KINDS[kind]
    file = write_lora(tmp_path / "lora.safetensors", options, alphas)
    alpha = 2.0 if options is not None or alphas else 4.0
    loaded = transformer()
    load_adapter(loaded, file)
    found = {"load_adapter": loaded}
    found["init_from"], adapter = started(file, alpha)
    found["saved again"] = transformer()
    load_adapter(found["saved again"], adapter.save(tmp_path / "again", {}))
    expected = by_formula(file, options, alphas)
    if not alphas:
        # The stock loader of this pipeline knows no alpha in these names.
        pipe = tiny("sd3")
        pipe.transformer = found["Diffusers"] = transformer()
        pipe.load_lora_weights(str(file))
    for way, model in found.items():
        same(deltas(model), expected, way)
    for layer in read_lora(file).layers:
        torch.testing.assert_close(layer.delta.float(), expected[layer.name], rtol=1e-4, atol=1e-4)
    (source,) = read_sources([file])
    for name in LAYERS:
        factors = source.factors(name)
        torch.testing.assert_close((factors.up @ factors.down).float(), expected[name], rtol=1e-4, atol=1e-4)


def test_alphas_that_the_header_contradicts(tmp_path):
    file = write_lora(tmp_path / "lora.safetensors", {}, {0: 7.0})
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
