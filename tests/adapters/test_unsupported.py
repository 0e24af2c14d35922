"""Files whose change is more than an addition to the base are refused: loading them in part would go unnoticed."""

from __future__ import annotations

import json

import pytest
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from lycoris import LycorisNetwork, create_lycoris
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.errors import AdapterError
from tests.adapters.helpers import appearance, section, transformer


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"use_dora": True}, "the file has no `lora_magnitude_vector`"),
        ({"init_lora_weights": "pissa_niter_4"}, "fits a changed base only"),
        ({"init_lora_weights": "olora"}, "fits a changed base only"),
    ],
)
def test_a_lora_that_changes_the_base(option, message, tmp_path):
    file = build_adapter(transformer(), section("lora")).save(tmp_path, {})
    with safe_open(file, "pt") as handle:
        metadata = {key: value for key, value in handle.metadata().items() if not key.startswith("flowhooks.")}
    document = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
    document |= {f"transformer.{key}": value for key, value in option.items()}
    save_file(load_file(file), file, {**metadata, LORA_ADAPTER_METADATA_KEY: json.dumps(document)})
    refused(file, message)


@pytest.mark.parametrize("algorithm", ["locon", "loha", "lokr"])
def test_weight_decomposition_of_lycoris(algorithm, tmp_path):
    refused(by_lycoris(tmp_path, algorithm, dora_wd=True), "weight decomposition")


@pytest.mark.parametrize("algorithm", ["full", "glora", "diag-oft", "boft"])
def test_other_algorithms_of_lycoris(algorithm, tmp_path):
    refused(by_lycoris(tmp_path, algorithm), f"LyCORIS' '{algorithm}'; expected one of lora, locon, loha, lokr")


def by_lycoris(folder, algorithm, **options):
    preset = {name: getattr(LycorisNetwork, name) for name in ("TARGET_REPLACE_MODULE", "TARGET_REPLACE_NAME")}
    try:
        LycorisNetwork.apply_preset({"target_module": [], "target_name": [".*to_q"]})
        network = create_lycoris(transformer(), 1.0, linear_dim=2, linear_alpha=2.0, algo=algorithm, **options)
        network.apply_to()
    finally:
        for name, value in preset.items():
            setattr(LycorisNetwork, name, value)
    file = folder / "by_lycoris.safetensors"
    save_file({key: tensor.detach().contiguous().clone() for key, tensor in network.state_dict().items()}, file)
    return file


def refused(file, message):
    model = transformer()
    before = appearance(model)
    with pytest.raises(AdapterError, match=message):
        load_adapter(model, file)
    assert appearance(model) == before
