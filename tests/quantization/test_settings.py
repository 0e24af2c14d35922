"""Settings of backends are checked by their own classes."""

from __future__ import annotations

import json

import pytest
import torch

from flowhooks.quantization.settings import SettingsRefused, configuration
from flowhooks.quantization.table import BACKENDS, METHOD, SHORT
from tests.packaging.test_dependencies import EXTRAS, ROOT

AO, BNB, QUANTO = ({METHOD: name} for name in ("torchao", "bitsandbytes", "quanto"))


def of_torchao(**data):
    return {**AO, "quant_type": {"_type": "Float8WeightOnlyConfig", "_data": data}}


@pytest.mark.parametrize(
    ("settings", "keys", "words"),
    [
        (AO, ("quant_type",), "no name of a configuration"),
        ({**AO, "quant_type": "Int4WeightOnlyConfig"}, ("quant_type",), "use 'int4' or 'nf4'"),
        ({**AO, "quant_type": "quantize_"}, ("quant_type",), "none of torchao's configurations"),
        ({**AO, "quant_type": {"_type": "os.system"}}, ("quant_type",), "none of torchao's configurations"),
        ({**AO, "quant_type": {"_type": "Int8WeightOnlyConfig", "_data": 3}}, ("quant_type", "_data"), "an object"),
        (of_torchao(granular=1), ("quant_type", "_data", "granular"), "did you mean 'granularity'?"),
        (of_torchao(set_inductor_config=True), ("quant_type", "_data", "set_inductor_config"), "it takes"),
        (of_torchao(granularity="PerGroup"), ("quant_type", "_data", "granularity"), '"group_size": 64'),
        (of_torchao(granularity={"_type": "PerBlock"}), ("quant_type", "_data", "granularity"), "'PerRow'"),
        (of_torchao(weight_dtype="int8"), ("quant_type", "_data", "weight_dtype"), "'float8_e4m3fn'"),
        (BNB, (), "set `load_in_4bit` or `load_in_8bit`"),
        ({**BNB, "load_in_4bit": "yes"}, (), "load_in_4bit must be a boolean"),
        ({**BNB, "load_in_4bit": True, "load_in_8bit": True}, (), "both True"),
        ({**BNB, "load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, ("bnb_4bit_quant_type",), "'nf4' or 'fp4'"),
        ({**BNB, "load_in_4bit": True, "bnb_4bit_quant_storage": "os"}, (), "must be a valid string"),
        ({**BNB, "load_in_8bit": True, "llm_int8_skip_modules": "a"}, ("llm_int8_skip_modules",), "list of names"),
        ({**BNB, "load_in_8bit": True, "llm_int8_has_fp16_weight": True}, ("llm_int8_has_fp16_weight",), "it takes"),
        ({**QUANTO, "weights_dtype": "int9"}, (), "found int9"),
        ({**QUANTO, "wights": "int8"}, ("wights",), "did you mean 'weights_dtype'?"),
    ],
)
def test_what_a_backend_cannot_use_is_named_with_its_place(settings, keys, words):
    with pytest.raises(SettingsRefused) as refused:
        configuration(settings, "diffusers", torch.bfloat16)
    assert refused.value.keys == keys
    assert words in str(refused.value)


def test_activations_of_a_text_encoder_are_not_quantised():
    with pytest.raises(SettingsRefused, match="no gradient"):
        configuration({**QUANTO, "activations": "int8"}, "transformers", torch.bfloat16)


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
@pytest.mark.parametrize("name", [name for name in SHORT if name != "gguf"])
def test_a_short_name_is_a_configuration_of_both_libraries(name, library):
    made = configuration(SHORT[name], library, torch.bfloat16)
    assert type(made).__module__.startswith(library)


def test_nothing_of_the_process_changes():
    before = torch.get_float32_matmul_precision()
    assert configuration(SHORT["int8"], "diffusers", torch.float32).quant_type.set_inductor_config is False
    assert torch.get_float32_matmul_precision() == before


def test_the_schema_offers_every_name_and_backend_and_no_other():
    schema = json.loads((ROOT / "schemas" / "run.schema.json").read_text(encoding="utf-8"))
    short, whole = schema["properties"]["model"]["properties"]["quantization"]["allOf"]
    component = whole["then"]["patternProperties"]["^[A-Za-z]"]["allOf"]
    assert short["then"]["enum"] == component[0]["then"]["enum"] == list(SHORT)
    assert component[1]["then"]["properties"][METHOD]["enum"] == list(BACKENDS)
    assert all(len(EXTRAS[backend.extra]) == 1 for backend in BACKENDS.values())
