"""Rules of names cover every Linear layer of their family, both ways, and are those of Diffusers' own converters."""

from __future__ import annotations

from collections import defaultdict
from inspect import signature

import pytest
import torch
from diffusers.loaders import single_file_utils

from flowhooks.adapters.native_file import Names
from flowhooks.adapters.network import Network, network_header, network_of, network_told
from flowhooks.naming import LAYOUTS, families, family_of, places_of, tencent_name, tool_version
from flowhooks.naming.layouts import begins
from tests.naming.rows import FIRST, PIPELINES, ROWS, denoiser, linears, network, numbers


def test_every_family_has_a_row():
    assert ROWS.keys() == families().keys()
    for family, names in ROWS.items():
        assert all(network(name).kind in families()[family].classes for name in names)


def built(name: str, **settings: int) -> Network:
    """The network of a tiny pipeline on meta, with other settings."""
    transformer = denoiser(name)
    # Diffusers notes there which settings are defaults, and takes those in place of others.
    config = {key: value for key, value in transformer.config.items() if key != "_use_default_values"}
    with torch.device("meta"):
        found = type(transformer).from_config({**config, **settings})
    assert all(found.config[key] == value for key, value in settings.items())
    return network_of(found)


#: Settings of networks with layers that the tiny pipelines' lack: an image beside the prompt.
WITH_AN_IMAGE = {"image_dim": 16, "added_kv_proj_dim": 24}


@pytest.mark.parametrize(("name", "settings"), [*((name, {}) for name in PIPELINES), ("wan", WITH_AN_IMAGE)])
def test_every_linear_layer_has_one_place_and_comes_back(name, settings):
    found_network = built(name, **settings) if settings else network(name)
    layers = {layer: shape for layer, shape in found_network.shapes.items() if len(shape) == 2}
    family = family_of(found_network.kind)
    places = places_of(family, layers)
    assert [layer for layer in layers if layer not in places] == []
    fused = defaultdict(list)
    for layer, place in places.items():
        assert layer in place.parts and all(part in layers for part in place.parts)
        fused[place.native].append(layer)
        inputs = {layers[part][1] for part in place.parts}
        assert len(inputs) == 1
        if place.swaps(*layers[layer]):
            assert layers[layer][0] % 2 == 0
    for native, parts in fused.items():
        assert sorted(places[parts[0]].parts) == sorted(parts), native
    names = Names(found_network)
    for layout in LAYOUTS.values():
        if layout.names == "tencent" and not family.tencent:
            continue
        keys = {layout.key(place): place for place in places.values()}
        assert len(keys) == (len(layers) if layout.names == "diffusers" else len(fused))
        found = names.whose(keys)
        assert found is not None
        assert all(
            names_own in (place.layer, place.native)
            for (_, names_own), place in zip(found.values(), keys.values(), strict=True)
        )


@pytest.mark.parametrize("name", FIRST.values())
def test_a_files_header_tells_the_network(name):
    header = network_header(denoiser(name))
    assert network_told(header, "a file") == network(name)


#: Family -> Diffusers' converter of its original checkpoints.
CONVERTERS = {
    "sd3": "convert_sd3_transformer_checkpoint_to_diffusers",
    "flux": "convert_flux_transformer_checkpoint_to_diffusers",
    "flux2": "convert_flux2_transformer_checkpoint_to_diffusers",
    "chroma": "convert_chroma_transformer_checkpoint_to_diffusers",
    "hidream-image": "convert_hidream_transformer_to_diffusers",
    "z-image": "convert_z_image_transformer_checkpoint_to_diffusers",
    "aura-flow": "convert_auraflow_transformer_checkpoint_to_diffusers",
    "wan": "convert_wan_transformer_to_diffusers",
    "ltx": "convert_ltx_transformer_checkpoint_to_diffusers",
    "ltx2": "convert_ltx2_transformer_to_diffusers",
    "mochi": "convert_mochi_transformer_checkpoint_to_diffusers",
    "ernie-image": "convert_ernie_image_transformer_checkpoint_to_diffusers",
    "krea2": "convert_krea2_transformer_checkpoint_to_diffusers",
    "hunyuan-video": "convert_hunyuan_video_transformer_to_diffusers",
    "cosmos": "convert_cosmos_transformer_checkpoint_to_diffusers",
}


class LenientCheckpoint(dict):
    """Has a zero for each weight that no Linear layer has, such as a norm's, and for every bias."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def __setitem__(self, key, weight):
        self.rows[key.removesuffix(".weight")] = len(weight)
        super().__setitem__(key, weight)

    def pop(self, key, *default):
        return super().pop(key) if key in self else self._zeros(key)

    def __getitem__(self, key):
        return super().__getitem__(key) if key in self else self._zeros(key)

    def _zeros(self, key):
        rows = self.rows.get(key.removesuffix(".bias"))
        return torch.zeros(6, 4) if rows is None else torch.zeros(rows)


#: Family -> settings of its network that its converter has as numbers in its code.
WIDE = {
    **dict.fromkeys(("flux", "chroma", "hunyuan-video"), {"num_attention_heads": 24, "attention_head_dim": 128}),
    "mochi": {"num_layers": 48},
}
#: Layers of a later release than the converter's.
NEWER = {"ltx2": ("prompt_adaln", "audio_prompt_adaln")}


@pytest.mark.parametrize(
    ("family", "settings"), [*((family, WIDE.get(family, {})) for family in CONVERTERS), ("wan", WITH_AN_IMAGE)]
)
def test_rows_are_those_of_diffusers_own_converter(family, settings):
    found = built(FIRST[family], **settings)
    layers = {layer: shape for layer, shape in found.shapes.items() if len(shape) == 2}
    # One column says where each row goes.
    weights = {layer: numbers(shape[0], 1, seed=i) for i, (layer, shape) in enumerate(layers.items())}
    native = LenientCheckpoint()
    for place in places_of(families()[family], layers).values():
        weight = torch.cat([weights[part] for part in place.parts])
        if place.swaps(len(weight), layers[place.layer][1]):
            weight = weight.roll(len(weight) // 2, 0)
        # Tencent's checkpoints are converted, not ComfyUI's.
        native[f"{tencent_name(place.native) if family == 'hunyuan-video' else place.native}.weight"] = weight
    convert = getattr(single_file_utils, CONVERTERS[family])
    converted = convert(native, **({"config": {}} if "config" in signature(convert).parameters else {}))
    wrong = [
        layer
        for layer, weight in weights.items()
        if layer.split(".")[0] not in NEWER.get(family, ())
        and not torch.equal(converted.get(f"{layer}.weight", torch.empty(0)), weight)
    ]
    assert wrong == []


def test_the_data_name_what_there_is():
    for family in families().values():
        assert {*family.portable, *family.reads} <= LAYOUTS.keys()
        for layout, tools in family.reads.items():
            for tool, limits in tools.items():
                assert tool_version(tool) and limits.keys() <= {"only", "without"}, (family.name, layout)
                patterns = [pattern for found in limits.values() for pattern in found]
                layers = [layer for name in ROWS[family.name] for layer in linears(name)]
                idle = [p for p in patterns if not any(begins(layer, p) for layer in layers)]
                assert idle == [], (family.name, layout, tool)


@pytest.mark.parametrize("name", [FIRST[family] for family, found in families().items() if found.convolutions])
def test_convolutions_that_have_names_are_there(name):
    family = family_of(network(name).kind)
    for layer in family.convolutions:
        assert len(network(name).shapes[layer]) > 2, layer
        assert family.place(layer) is None, "no adapter of it is renamed"
