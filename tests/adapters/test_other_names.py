"""LoRA files with the layer names of other programs act as Diffusers has them act, or are refused by what they are."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import load_file, save_file

import flowhooks
from flowhooks.adapters import FrozenAdapter, build_adapter, load_adapter
from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.base import base_layer
from flowhooks.adapters.fit import check_file
from flowhooks.adapters.merge_sources import read_sources
from flowhooks.errors import AdapterError
from flowhooks.export import export_lora
from tests.adapters.helpers import section, train_randomly
from tests.families import learnt, tiny

RANK, ALPHA = 4, 2.0
FLUX = "lora_unet_double_blocks_0_img_attn_"
#: Name -> pipeline, how a layer's key begins, its two matrices, and its layers with inputs and outputs.
FILES = {
    "Flux, kohya": ("flux", "down/up", {f"{FLUX}proj": (32, 32), f"{FLUX}qkv": (32, 96)}),
    "Flux, ComfyUI": ("flux", "down/up", {"diffusion_model.double_blocks.0.img_attn.proj": (32, 32)}),
    "Flux, Diffusers and alphas": (
        "flux",
        "A/B",
        {f"transformer.transformer_blocks.0.attn.{name}": (32, 32) for name in ("to_q", "to_k")},
    ),
    "Qwen-Image, kohya": (
        "qwen-image",
        "down/up",
        {f"lora_unet_transformer_blocks_0_attn_{name}": (32, 32) for name in ("to_q", "to_add_out")},
    ),
    "Qwen-Image, ComfyUI": ("qwen-image", "A/B", {"diffusion_model.transformer_blocks.0.attn.to_q": (32, 32)}),
    "Qwen-Image, bare": ("qwen-image", "A/B", {"transformer_blocks.0.attn.to_q": (32, 32)}),
    "Wan, ComfyUI": ("wan", "A/B", {"diffusion_model.blocks.0.self_attn.q": (24, 24)}),
    "Wan, down and up": ("wan", "down/up", {"diffusion_model.blocks.1.ffn.0": (24, 32)}),
    "Z-Image, kohya": ("z-image", "down/up", {"lora_unet_layers_0_attention_to_q": (32, 32)}),
    "Z-Image, ComfyUI": ("z-image", "A/B", {"diffusion_model.layers.0.attention.to_q": (32, 32)}),
}
SIDES = {"A/B": ("lora_A", "lora_B"), "down/up": ("lora_down", "lora_up")}


def write(name, file, alpha=ALPHA, **header):
    family, sides, layers = FILES[name]
    generator = torch.Generator().manual_seed(0)
    first, second = SIDES[sides]
    tensors = {}
    for place, (layer, (inputs, outputs)) in enumerate(layers.items()):
        tensors[f"{layer}.{first}.weight"] = torch.randn(RANK, inputs, generator=generator)
        tensors[f"{layer}.{second}.weight"] = torch.randn(outputs, RANK, generator=generator)
        if alpha is not None:
            tensors[f"{layer}.alpha"] = torch.tensor(alpha + place)
    save_file(tensors, file, header)
    return file, family


@torch.no_grad()
def adapted(network):
    """The change of every adapted layer's weight."""
    found = {}
    for name, layer in network.named_modules():
        if hasattr(layer, "lora_A"):
            ones = torch.eye(layer.in_features)
            found[name] = (layer(ones) - layer.get_base_layer()(ones)).T
    return found


@torch.no_grad()
def beside(network, frozen):
    """The same of a frozen adapter."""
    layers = {name: base_layer(network, name) for name in frozen.targets}
    ones = {name: torch.eye(layer.in_features) for name, layer in layers.items()}
    with frozen.alone():
        found = {name: layer(ones[name]) for name, layer in layers.items()}
    return {name: (found[name] - layer(ones[name])).T for name, layer in layers.items()}


# Without alphas these are not told from Diffusers' own by its reader.
WITHOUT = [name for name in FILES if name not in ("Qwen-Image, bare", "Flux, Diffusers and alphas")]


@pytest.mark.parametrize(("name", "alpha"), [*((name, ALPHA) for name in FILES), *((name, None) for name in WITHOUT)])
def test_as_diffusers_loads_it(name, alpha, tmp_path):
    file, family = write(name, tmp_path / "lora.safetensors", alpha)
    pipe = tiny(family)
    bare = deepcopy(pipe.transformer)
    pipe.load_lora_weights(str(file))
    expected = adapted(pipe.transformer)
    pipe.unload_lora_weights()
    assert expected and all(change.any() for change in expected.values())
    if alpha is not None:
        # A few lines of what all these programs compute.
        tensors = load_file(file)
        for place, layer in enumerate(FILES[name][2]):
            first, second = (tensors[f"{layer}.{side}.weight"] for side in SIDES[FILES[name][1]])
            size = ((alpha + place) / RANK * second @ first).square().sum()
            expected_size = sum(change.square().sum() for change in expected.values())
            assert expected_size >= 0.999 * size
    loaded = deepcopy(bare)
    adapter = load_adapter(loaded, file, pipeline=pipe)
    ways = {"load_adapter": adapted(loaded), "teacher": beside(bare, FrozenAdapter(bare, file, pipeline=type(pipe)))}
    started = deepcopy(bare)
    told = {"rank": adapter.config["rank"], "alpha": adapter.config["alpha"], "target_modules": list(adapter.targets)}
    begun = build_adapter(started, section("lora", **told, init_from=str(file)), pipeline=pipe)
    ways["init_from"] = adapted(started)
    load_adapter(deepcopy(bare), begun.save(tmp_path / "again", {}))
    for way, found in ways.items():
        assert found.keys() == expected.keys(), way
        for layer, change in expected.items():
            torch.testing.assert_close(found[layer], change, rtol=1e-4, atol=1e-4, msg=f"{way}, {layer}")


@pytest.fixture(scope="module")
def model():
    return learnt("qwen-image")


@pytest.mark.parametrize("dialect", ["kohya", "comfyui"])
def test_a_run_reads_what_export_writes(dialect, model, tmp_path):
    """By `init_from`, as an anchor, and by `check` before anything loads."""
    adapter = build_adapter(deepcopy(model.transformer), section("lora", rank=RANK, alpha=ALPHA))
    train_randomly(adapter)
    expected = adapted(adapter.transformer)
    file = export_lora(adapter.save(tmp_path / "run", {}), dialect, tmp_path / "out")
    model.pipe.save_config(tmp_path / "base")
    # Their alphas are in the matrices once they are read.
    lora = section("lora", algo=None, rank=RANK, alpha=float(RANK), init_from=str(file))
    anchor = {"type": "anchor_regularizer", "role": "adapter:x", "weight": 1.0, "adapter": str(file)}
    check_file(file, tmp_path / "base", lora)
    check_file(file, None, lora)
    with flowhooks.attach(model, {"adapter": lora, "hooks": [anchor]}) as session:
        found = adapted(model.transformer)
        assert "adapter:x" in session.roles
    assert found.keys() == expected.keys()
    for layer, change in expected.items():
        torch.testing.assert_close(found[layer], change, rtol=1e-4, atol=1e-4)
    other = {**lora, "alpha": ALPHA}
    with pytest.raises(AdapterError, match=r"holds type lora, rank 4, alpha 4; the adapter section says .* alpha 2"):
        check_file(file, tmp_path / "base", other)
    with (
        pytest.raises(AdapterError, match="holds type lora, rank 4, alpha 4"),
        flowhooks.attach(model, {"adapter": other, "hooks": []}),
    ):
        pass


REFUSED = {
    "no reader of these names": ("Flux, kohya", "sd3", "kohya's scripts .*StableDiffusion3Pipeline does not read"),
    "no reader at all": ("Flux, kohya", "lumina", "kohya's scripts .*LuminaPipeline reads no LoRA files at all"),
    "names of another model": ("Wan, ComfyUI", "qwen-image", "has no layer named `blocks.0.self_attn.q`"),
    "names that its reader chokes on": ("Flux, kohya", "wan", "WanPipeline cannot convert"),
    "pipeline not known": ("Flux, kohya", None, "kohya's scripts .*`init_from`.*`load_adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    name, family, sentence = REFUSED[case]
    file, own = write(name, tmp_path / "lora.safetensors")
    pipe = tiny(family or own)
    with pytest.raises(AdapterError, match=sentence):
        if family is None:
            read_adapter(file)
        else:
            load_adapter(pipe.transformer, file, pipeline=pipe)
    if family is not None:
        pipe.save_pretrained(tmp_path / "base")
        with pytest.raises(AdapterError, match=sentence.replace("has no", "the model has no")):
            check_file(file, tmp_path / "base")
    else:
        with pytest.raises(AdapterError, match="kohya's scripts"):
            read_sources([file])


def rewritten(file, change, **header):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, header)
    return file


class LosesAlpha:
    """A pipeline whose reader knows matrices only."""

    @classmethod
    def lora_state_dict(cls, tensors, **_):
        return {f"transformer.{key}": tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}


def test_an_alpha_that_the_reader_loses(tmp_path):
    file, _ = write("Qwen-Image, bare", tmp_path / "lora.safetensors")
    # A network that lacks the layer, or the rules would know its name.
    with pytest.raises(AdapterError, match="LosesAlpha converts them to has 2 times the size of the change"):
        load_adapter(tiny("wan").transformer, file, pipeline=LosesAlpha)


def test_layers_that_the_reader_leaves_out(tmp_path):
    """Flux' reader drops a T5 encoder's without a word."""
    file, _ = write("Flux, ComfyUI", tmp_path / "lora.safetensors")
    layer = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    more = {f"{layer}.lora_down.weight": torch.ones(RANK, 32), f"{layer}.lora_up.weight": torch.ones(32, RANK)}
    rewritten(file, lambda tensors: tensors.update(more))
    pipe = tiny("flux")
    with pytest.raises(AdapterError, match=r"has 0\.\d+ times the size of the change .* leaves out layers"):
        load_adapter(pipe.transformer, file, pipeline=pipe)


PROJ = f"{FLUX}proj"
DAMAGED = {
    "one matrix": ({f"{PROJ}.lora_up.weight": None}, "has only one of its two matrices"),
    "another rank": ({f"{PROJ}.lora_up.weight": torch.ones(32, 3)}, r"has shapes \[4, 32\] and \[32, 3\]"),
    "no matrix": ({f"{PROJ}.lora_down.weight": torch.ones(())}, r"has shapes \[\] and"),
    "rank 0": (
        {f"{PROJ}.lora_down.weight": torch.ones(0, 32), f"{PROJ}.lora_up.weight": torch.ones(32, 0)},
        r"has shapes \[0, 32\] and",
    ),
    "alphas": ({f"{PROJ}.alpha": torch.ones(2)}, "expected one number"),
    "nothing": ({f"{PROJ}.lora_up.weight": torch.zeros(32, 4), f"{FLUX}qkv.alpha": torch.tensor(0.0)}, None),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(case, tmp_path):
    changes, sentence = DAMAGED[case]
    file, _ = write("Flux, kohya", tmp_path / "lora.safetensors")
    kept = {key: tensor for key, tensor in {**load_file(file), **changes}.items() if tensor is not None}
    save_file(kept, file)
    pipe = tiny("flux")
    if sentence is None:
        load_adapter(pipe.transformer, file, pipeline=pipe)
        return
    with pytest.raises(AdapterError, match=sentence):
        load_adapter(pipe.transformer, file, pipeline=pipe)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("lora_unet_double_blocks_0_img_attn_proj.dora_scale", "`{}` makes it a DoRA of LyCORIS' kind"),
        ("text.bias", "and `{}` beside the two matrices"),
    ],
)
def test_more_than_a_plain_lora(key, sentence, tmp_path):
    file, _ = write("Flux, kohya", tmp_path / "lora.safetensors")
    rewritten(file, lambda tensors: tensors.update({key: torch.ones(32)}))
    pipe = tiny("flux")
    with pytest.raises(AdapterError, match=sentence.format(key)):
        load_adapter(pipe.transformer, file, pipeline=pipe)


def test_metadata_of_the_names_that_it_had(tmp_path):
    """It tells of alphas that the matrices have in them."""
    header = {LORA_ADAPTER_METADATA_KEY: json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 8 * RANK})}
    plain, _ = write("Qwen-Image, ComfyUI", tmp_path / "plain.safetensors")
    told, _ = write("Qwen-Image, ComfyUI", tmp_path / "told.safetensors", **header)
    pipe = tiny("qwen-image")
    found = []
    for file in (plain, told):
        network = deepcopy(pipe.transformer)
        load_adapter(network, file, pipeline=pipe)
        found.append(adapted(network))
    assert all(torch.equal(change, found[1][name]) for name, change in found[0].items())
