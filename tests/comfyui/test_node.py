"""The node's own parts, without ComfyUI: what it reads, where steps end, and what it refuses."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import flowhooks
from flowhooks.naming import families, family_of
from tests.comfyui.node import NODE, node
from tests.families import learnt

FLOW_MAP = node()
ABOUT = {
    "version": 1,
    "family": "flux",
    "network": "FluxTransformer2DModel",
    "component": "transformer",
    "base": "somebody/a-flux",
    "gate": 0.25,
    "mode": "r",
    "scale": 1000.0,
    "offset": 0.0,
    "layers": {"double_blocks.#.img_attn.qkv": [2, 24, 8], "guidance_in.in_layer": [0, 0, 0], "patches": [1, 4, 3]},
}
#: Of the base that `ABOUT` describes.
SHAPES = {
    "double_blocks.0.img_attn.qkv.weight": (12, 4),
    "double_blocks.1.img_attn.qkv.weight": (12, 4),
    "double_blocks.1.img_attn.norm.query_norm.scale": (4,),
    "time_in.in_layer.weight": (4, 8),
    "time_in.out_layer.weight": (4, 4),
    "patches.weight": (4, 3, 1, 2, 2),
}


def tensors():
    return {
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(2, 4),
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": torch.ones(12, 2),
        "second_time.time_in.in_layer.weight": torch.ones(4, 8),
        "second_time.time_in.in_layer.bias": torch.zeros(4),
        "second_time.time_in.out_layer.weight": torch.ones(4, 4),
    }


def written(folder, header=None, **changes):
    """A file like that of `flowhooks export --format flow-map`."""
    file = folder / "flow_map.safetensors"
    text = json.dumps({**ABOUT, **changes}) if header is None else header
    save_file(tensors(), file, {FLOW_MAP.HEADER: text})
    return file


def imported(nodes):
    """The packages that statements import."""
    found = set()
    for each in nodes:
        if isinstance(each, ast.Import):
            found |= {name.name.partition(".")[0] for name in each.names}
        elif isinstance(each, ast.ImportFrom):
            found.add((each.module or "").partition(".")[0])
    return found


def test_its_file_needs_neither_comfyui_nor_flowhooks():
    tree = ast.parse(NODE.read_text(encoding="utf-8"))
    assert imported(tree.body) - set(sys.stdlib_module_names) == {"safetensors", "torch"}
    assert imported(ast.walk(tree)) - imported(tree.body) == {"comfy", "folder_paths"}, "when a node runs"


def test_a_file_is_read(tmp_path):
    found = FLOW_MAP.read_flow_map(written(tmp_path))
    assert (found.family, found.base, found.gate, found.mode) == ("flux", "somebody/a-flux", 0.25, "r")
    assert (found.scale, found.offset) == (1000.0, 0.0)
    assert (found.embedder, found.layers) == ("time_in", ("time_in.in_layer", "time_in.out_layer"))
    assert [sorted(layer) for layer in found.second] == [["bias", "weight"], ["weight"]]
    assert all(key.startswith("diffusion_model.") for key in found.lora) and len(found.lora) == 2
    FLOW_MAP.refuse_other_model(found, "Flux", SHAPES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"header": "{"}, "is damaged"),
        ({"header": json.dumps({key: value for key, value in ABOUT.items() if key != "gate"})}, "is damaged.*gate"),
        ({"layers": ["a"]}, "is damaged"),
        ({"version": 2}, "has version 2, this node reads 1"),
        ({"family": "lumina2"}, "is for 'lumina2'; this node knows sd3, flux"),
        ({"mode": "q"}, "mode 'q'"),
        ({"gate": 1.5}, "gate 1.5"),
    ],
)
def test_a_header_that_says_something_else_is_refused(change, message, tmp_path):
    with pytest.raises(FLOW_MAP.FlowMapError, match=message):
        FLOW_MAP.read_flow_map(written(tmp_path, **change))


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file({"diffusion_model.a.lora_A.weight": torch.ones(2, 2)}, file, {"format": "pt"})
    with pytest.raises(FLOW_MAP.FlowMapError, match=r"holds no flow map.*`flowhooks export RUN --format flow-map`"):
        FLOW_MAP.read_flow_map(file)
    save_file({"diffusion_model.a.lora_A.weight": torch.ones(2, 2)}, file, {FLOW_MAP.HEADER: json.dumps(ABOUT)})
    with pytest.raises(FLOW_MAP.FlowMapError, match="lacks its second embedder"):
        FLOW_MAP.read_flow_map(file)
    file.write_bytes(b"nothing")
    with pytest.raises(FLOW_MAP.FlowMapError, match="cannot be read as safetensors"):
        FLOW_MAP.read_flow_map(file)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("SD3", {}, "for flux, trained on 'somebody/a-flux'; this model is ComfyUI's SD3, not Flux"),
        ("Flux", {"double_blocks.2.img_attn.qkv.weight": (12, 4)}, "2 layers with 24 outputs and 8 inputs.*has 3 "),
        ("Flux", {"double_blocks.1.img_attn.qkv.weight": (16, 4)}, "2 layers with 28 outputs"),
        ("Flux", {"guidance_in.in_layer.weight": (4, 8)}, "no layer `guidance_in.in_layer`; this model has 1 layer"),
        ("Flux", {"patches.weight": (4, 5, 1, 2, 2)}, "4 outputs and 3 inputs `patches`; this model has .* 5 inputs"),
        ("Flux", {"time_in.in_layer.weight": (4, 6)}, "`time_in.in_layer` has .4, 8. numbers; this model has .4, 6."),
    ],
)
def test_another_model_is_refused_by_name(kind, change, message, tmp_path):
    found = FLOW_MAP.read_flow_map(written(tmp_path))
    with pytest.raises(FLOW_MAP.FlowMapError, match=message) as error:
        FLOW_MAP.refuse_other_model(found, kind, {**SHAPES, **change})
    assert "Load 'somebody/a-flux'" in str(error.value)


SIGMAS = [1.0, 0.75, 0.5, 0.0]


@pytest.mark.parametrize(
    ("sampler", "options", "ends"),
    [
        ("sample_euler", {}, [0.75, 0.5, 0.0]),
        ("sample_euler_ancestral", {"eta": 0.0}, [0.75, 0.5, 0.0]),
        ("sample_euler_ancestral", {}, [0.75 * 0.75, 0.5 * 0.5 / 0.75, 0.0]),
        ("sample_lcm", {}, [0.0, 0.0, 0.0]),
    ],
)
def test_where_steps_end(sampler, options, ends):
    steps = FLOW_MAP.steps_of(sampler, SIGMAS, options)
    assert [steps.end(sigma) for sigma in SIGMAS[:-1]] == pytest.approx(ends)
    assert steps.end(float(torch.tensor(0.75, dtype=torch.float64).float())) == pytest.approx(ends[1])


def test_calls_between_steps_are_refused():
    steps = FLOW_MAP.steps_of("sample_euler", SIGMAS, {})
    with pytest.raises(FLOW_MAP.FlowMapError, match="at sigma 0.6, where no step starts .1, 0.75, 0.5."):
        steps.end(0.6)
    again = FLOW_MAP.steps_of("sample_euler", [1.0, 0.5, 0.5, 0.0], {})
    assert again.end(0.5) == 0.0, "a step without length does not matter"


@pytest.mark.parametrize("sampler", ["sample_heun", "sample_dpmpp_2m", "sample_euler_cfg_pp", "UNIPC"])
def test_samplers_of_other_steps_are_refused(sampler):
    with pytest.raises(FLOW_MAP.FlowMapError, match="Choose euler, euler_ancestral, lcm or ddim"):
        FLOW_MAP.steps_of(sampler, SIGMAS, {})


def test_settings_that_make_other_steps_are_refused():
    with pytest.raises(FLOW_MAP.FlowMapError, match="`s_churn`"):
        FLOW_MAP.steps_of("sample_euler", SIGMAS, {"s_churn": 1.0})
    with pytest.raises(FLOW_MAP.FlowMapError, match="the sigmas rise"):
        FLOW_MAP.steps_of("sample_euler", [0.5, 0.75], {})


def test_the_node_knows_the_families_whose_times_are_known():
    assert FLOW_MAP.MODELS.keys() == {name for name, family in families().items() if family.time is not None}


@pytest.mark.parametrize("name", FLOW_MAP.MODELS)
@pytest.mark.parametrize("mode", ["r", "t-r"])
@torch.no_grad()
def test_the_second_embedder_sees_what_it_saw_in_training(name, mode):
    """Sines and cosines of the second time, as flowhooks lets the network itself make them."""
    model, seen = learnt(name), []
    family = family_of(type(model.transformer).__name__)
    assert family.time.module == model.anatomy.time_embedder
    # In one of the two modes the second time has a unit of its own.
    own = None if mode == "r" else 0.5 * abs(family.time.input[0])
    noisy = torch.randn(1, *model.sample_shape, generator=torch.Generator().manual_seed(0))
    condition = model.encode_prompts(["a photo"])
    hook = {"type": "time_conditioning", "deltatime_type": mode, "timestep_scale": own}
    with flowhooks.attach(model, [hook]):
        model.interval.delta_embedder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model.predict(noisy, torch.tensor([0.7]), condition, r_sigma=torch.tensor([0.2]))
    scale, offset = family.time.angle(own)
    d = {"r": 0.2, "t-r": 0.5}[mode]
    found = FLOW_MAP.sinusoids(scale * d + offset, seen[0])
    torch.testing.assert_close(found.expand_as(seen[0]), seen[0], rtol=0, atol=2e-4)


def test_a_copy_of_the_first_embedder_changes_nothing_at_its_own_time(tmp_path):
    layers = [torch.nn.Linear(8, 4), torch.nn.Linear(4, 4)]
    network = torch.nn.Module()
    network.time_in = torch.nn.Sequential(layers[0], torch.nn.SiLU(), layers[1])
    found = FLOW_MAP.read_flow_map(written(tmp_path))
    copies = tuple({key: value.detach() for key, value in layer.state_dict().items()} for layer in layers)
    found = replace(found, second=copies)
    steps = FLOW_MAP.steps_of("sample_lcm", [0.5, 0.0], {})
    features = FLOW_MAP.sinusoids(500.0, torch.empty(1, 8))

    class Executor:
        class_obj = type("Model", (), {"diffusion_model": network})

        def __call__(self, *args, **kwargs):
            return network.time_in(features)

    bare = network.time_in(features)
    told = {FLOW_MAP.KEY: steps}
    moved = FLOW_MAP.BlendTimes(found)(Executor(), None, torch.tensor([0.5]), transformer_options=told)
    assert not torch.equal(moved, bare), "d is 0"
    same = replace(steps, ends=[0.5])
    kept = FLOW_MAP.BlendTimes(found)(Executor(), None, torch.tensor([0.5]), transformer_options={FLOW_MAP.KEY: same})
    assert torch.equal(kept, bare)
    assert torch.equal(network.time_in(features), bare), "no hook is left"
    with pytest.raises(FLOW_MAP.FlowMapError, match="outside a sampler's run"):
        FLOW_MAP.BlendTimes(found)(Executor(), None, torch.tensor([0.5]))
    with pytest.raises(FLOW_MAP.FlowMapError, match="different sigmas"):
        FLOW_MAP.BlendTimes(found)(Executor(), None, torch.tensor([0.5, 0.4]), transformer_options=told)
    assert not network.time_in._forward_hooks
