"""The strength of every layer is the one that Diffusers' own loader gives the same file, whichever way it is loaded."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model

from flowhooks.adapters import FrozenAdapter, build_adapter, load_adapter
from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.fit import check_file
from flowhooks.adapters.load import load_values
from flowhooks.adapters.merge import merge_adapter
from flowhooks.adapters.merge_sources import read_sources
from flowhooks.adapters.names import METADATA_KEY
from flowhooks.errors import AdapterError, FlowhooksWarning
from flowhooks.export.dialects import pieces_of
from tests.adapters.helpers import predict, section, transformer
from tests.adapters.strength_files import KINDS, LAYERS, by_formula, deltas, same, write_lora
from tests.families import tiny


def exported(file):
    return pieces_of(read_adapter(file), None)


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
    for piece in exported(file):
        torch.testing.assert_close(piece.change().float(), expected[piece.name], rtol=1e-4, atol=1e-4)
    (source,) = read_sources([file])
    for name in LAYERS:
        factors = source.factors(name)
        torch.testing.assert_close((factors.up @ factors.down).float(), expected[name], rtol=1e-4, atol=1e-4)


READERS = {
    "load_adapter": lambda file: load_adapter(transformer(), file),
    "init_from": lambda file: started(file, 2.0),
    "teacher": lambda file: FrozenAdapter(transformer(), file),
    "merge": lambda file: read_sources([file]),
    "export": exported,
}


@pytest.mark.parametrize("reader", READERS)
def test_alphas_that_the_header_contradicts(reader, tmp_path):
    file = write_lora(tmp_path / "lora.safetensors", {}, {0: 7.0})
    with pytest.raises(AdapterError, match=r"alpha` is 7, .* says 2\.0"):
        READERS[reader](file)
    # Divided by the root of the rank, 2 is what 4 is divided by the rank.
    file = write_lora(tmp_path / "lora.safetensors", {"use_rslora": True}, {0: 2.0})
    with pytest.raises(AdapterError, match=r"alpha` is 2, .* says 2\.0 with `use_rslora`"):
        READERS[reader](file)


BOTH = {
    "equal": ({}, {0: 2.0}, None),
    "equal, rank-stabilised": ({"use_rslora": True}, {0: 4.0, 1: 4.0}, None),
    "no alpha in the header": ({"lora_alpha": None}, {0: 1.0, 1: 3.0}, {0: 1.0, 1: 3.0}),
}


@pytest.mark.parametrize("case", BOTH)
def test_a_header_and_alphas(case, tmp_path):
    options, alphas, acting = BOTH[case]
    file = write_lora(tmp_path / "lora.safetensors", options, alphas)
    expected = by_formula(file, options, {}) if acting is None else by_formula(file, None, acting)
    found = transformer()
    load_adapter(found, file)
    same(deltas(found), expected, "load_adapter")
    same({piece.name: piece.change().float() for piece in exported(file)}, expected, "export")


@pytest.mark.parametrize(("kind", "scale"), [("rslora", "1"), ("alpha_pattern", "0.25")])
def test_values_of_a_file_under_another_strength(kind, scale, tmp_path):
    """An adapter that was not built for the file: both strengths are told, and nothing is loaded."""
    file = write_lora(tmp_path / "lora.safetensors", *KINDS[kind])
    adapter = build_adapter(transformer(), section("lora", rank=4, alpha=2.0, target_modules=list(LAYERS)))
    before = {key: value.clone() for key, value in adapter.state_dict().items()}
    sentence = rf"scales the change of `{LAYERS[0]}` by {scale}, the adapter section by 0\.5\. Set `adapter\.rank`"
    with pytest.raises(AdapterError, match=sentence):
        load_values(adapter, read_adapter(file))
    assert all(torch.equal(value, before[key]) for key, value in adapter.state_dict().items()) and adapter.fresh


def test_another_alpha_is_told_by_check_as_by_train(tmp_path):
    """Also of a file that no run of flowhooks wrote."""
    file = write_lora(tmp_path / "lora.safetensors", {}, {})
    wanted = section("lora", rank=4, alpha=4.0, target_modules=list(LAYERS), init_from=str(file))
    sentence = "holds type lora, rank 4, alpha 2; the adapter section says type lora, rank 4, alpha 4"
    with pytest.raises(AdapterError, match=sentence):
        build_adapter(transformer(), wanted)
    with pytest.raises(AdapterError, match=sentence):
        check_file(file, None, wanted)
    check_file(file, None, {**wanted, "alpha": 2.0})


def test_the_names_of_the_header_are_the_librarys():
    assert METADATA_KEY == LORA_ADAPTER_METADATA_KEY


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
    folder = peft_folder(modules_to_save=["proj_out"])
    for read in (lambda: load_adapter(transformer(), folder), lambda: check_file(folder, None)):
        with pytest.raises(AdapterError, match="`modules_to_save` is .*proj_out.*whole layers"):
            read()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"modules_to_save": ["proj_out"]}, "`modules_to_save` is .*proj_out.*whole layers"),
        ({"use_dora": True}, "the file has no `lora_magnitude_vector`"),
        ({"init_lora_weights": "pissa"}, "fits a changed base only"),
        ({"r": "4"}, "`r` is '4', expected a whole number"),
    ],
)
def test_a_header_that_is_refused_is_refused_by_check(option, sentence, tmp_path):
    file = write_lora(tmp_path / "lora.safetensors", option, {})
    for read in (lambda: load_adapter(transformer(), file), lambda: check_file(file, None)):
        with pytest.raises(AdapterError, match=sentence):
            read()


PEFT = {
    "LoRA": LoraConfig(
        r=4,
        lora_alpha=2,
        use_rslora=True,
        alpha_pattern={LAYERS[0]: 1},
        rank_pattern={LAYERS[1]: 2},
        target_modules=LAYERS,
    ),
    "LoHa": LoHaConfig(r=4, alpha=2, alpha_pattern={LAYERS[0]: 1}, rank_pattern={LAYERS[1]: 2}, target_modules=LAYERS),
    "LoKr": LoKrConfig(r=4, alpha=2, alpha_pattern={LAYERS[0]: 1}, rank_pattern={LAYERS[1]: 2}, target_modules=LAYERS),
}


@pytest.mark.parametrize("kind", PEFT)
def test_as_peft_loads_it(kind, tmp_path):
    trained = get_peft_model(transformer(), PEFT[kind])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    trained.save_pretrained(tmp_path)
    expected = predict(PeftModel.from_pretrained(transformer(), tmp_path))
    assert not torch.allclose(expected, predict(transformer()), atol=1e-2)
    options = {"rank": 4, "alpha": 2, "target_modules": list(LAYERS), "init_from": str(tmp_path)}
    ways = {
        "load_adapter": lambda model: load_adapter(model, tmp_path),
        "init_from": lambda model: build_adapter(model, section(kind.lower(), **options)),
        "merged": lambda model: merge_adapter(load_adapter(model, tmp_path)),
    }
    for way, load in ways.items():
        model = transformer()
        load(model)
        torch.testing.assert_close(predict(model), expected, rtol=1e-4, atol=1e-4, msg=way)
    model = transformer()
    with FrozenAdapter(model, tmp_path).alone():
        torch.testing.assert_close(predict(model), expected, rtol=1e-4, atol=1e-4)
