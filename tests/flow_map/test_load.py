"""A flow map is put onto a stock pipeline for good, and taken off without a trace."""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

import flowhooks
from flowhooks import FlowMapScheduler
from flowhooks.adapters.adapter_file import read_tensors
from flowhooks.errors import AdapterError, FlowhooksWarning, ModelError
from flowhooks.export.flow_map_loader import is_loadable, loader_source
from flowhooks.flow_map.step_time import FlowMapError
from flowhooks.hooks import TimeConditioningEnabler
from flowhooks.manifest import LOADER, MODULES
from flowhooks.probe import probe
from tests.families import learnt, tiny
from tests.flow_map.saved import flow_map, sampled

#: Parts that the tiny pipeline has not.
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "wan"])
def test_it_generates_what_our_own_loop_does_and_leaves_no_trace(name):
    folder, expected = flow_map(name)
    pipe = learnt(name).pipe
    before, scheduler = sampled(pipe, name), pipe.scheduler
    parts, config = {key: dict(vars(part)) for key, part in pipe.components.items() if part is not None}, pipe.config
    loaded = flowhooks.load_flow_map(pipe, folder)
    assert torch.equal(sampled(pipe, name), expected) and not torch.equal(before, expected)
    loaded.close()
    loaded.close()
    assert pipe.scheduler is scheduler and pipe.config == config
    assert {key: vars(part).keys() for key, part in pipe.components.items() if part is not None} == {
        key: part.keys() for key, part in parts.items()
    }
    assert torch.equal(sampled(pipe, name), before)


@pytest.fixture(scope="module")
def folder():
    return flow_map("sd3")[0]


@pytest.fixture
def pipe():
    return tiny("sd3")


def test_it_stays_on_when_nobody_keeps_what_was_returned(pipe, folder):
    flowhooks.load_flow_map(pipe, folder)
    gc.collect()
    assert torch.equal(sampled(pipe, "sd3"), flow_map("sd3")[1])
    copied = copy.deepcopy(pipe)
    del pipe
    gc.collect()
    assert torch.equal(sampled(copied, "sd3"), flow_map("sd3")[1])


def test_guidance_in_two_calls_a_step():
    folder, _ = flow_map("wan")
    pipe, model = tiny("wan"), learnt("wan")
    with flowhooks.load_flow_map(pipe, folder) as loaded:
        seen = []
        pipe.transformer.register_forward_pre_hook(
            lambda network, args, kwargs: seen.append(float(kwargs["timestep"].flatten()[0])), with_kwargs=True
        )
        guided = sampled(pipe, "wan", guidance_scale=3.0, negative_prompt="two")
        assert len(seen) == 6 and seen[::2] == seen[1::2]
    del loaded
    assert not torch.equal(guided, sampled(model.pipe, "wan", guidance_scale=3.0, negative_prompt="two"))


class TestOtherPipelines:
    """They share the network."""

    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    call = {"strength": 0.7, "height": 16, "width": 16}

    def test_made_of_the_components_they_are_told(self, pipe, folder):
        with flowhooks.load_flow_map(pipe, folder):
            pictures = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
            assert pictures.scheduler is pipe.scheduler
            mapped = sampled(pictures, "sd3", image=self.image, **self.call)
        pictures.scheduler = pictures.scheduler.stock()
        assert not torch.equal(sampled(pictures, "sd3", image=self.image, **self.call), mapped)

    @pytest.mark.parametrize("used", [False, True])
    def test_with_a_scheduler_of_their_own_they_are_refused_until_it_tells(self, pipe, folder, used):
        """Whatever the state of the scheduler that was bound first: never used, used, left in the midst of a run."""
        own = FlowMatchEulerDiscreteScheduler(shift=7.0)
        pictures = StableDiffusion3Img2ImgPipeline(**{**pipe.components, "scheduler": own})
        with flowhooks.load_flow_map(pipe, folder):
            if used:
                sampled(pipe, "sd3")
                pipe.scheduler.set_timesteps(1)
            with pytest.raises(ModelError, match="comes from no FlowMapScheduler.*from_scheduler"):
                sampled(pictures, "sd3", image=self.image, **self.call)
            pictures.scheduler = FlowMapScheduler.from_scheduler(pictures.scheduler)
            first = sampled(pictures, "sd3", image=self.image, **self.call)
            pictures.scheduler = FlowMapScheduler.from_config(pictures.scheduler.config)
            assert torch.equal(sampled(pictures, "sd3", image=self.image, **self.call), first)

    def test_without_the_flow_map_such_a_scheduler_is_refused(self, pipe, folder):
        loaded = flowhooks.load_flow_map(pipe, folder)
        scheduler = pipe.scheduler
        loaded.close()
        pipe.scheduler = scheduler
        with pytest.raises(FlowMapError, match="no network asked where that ends"):
            sampled(pipe, "sd3")
        # The pipeline is learned under it all the same.
        with flowhooks.load_flow_map(pipe, folder):
            assert torch.equal(sampled(pipe, "sd3"), flow_map("sd3")[1])


def test_a_scheduler_of_the_users_stays(pipe, folder):
    loaded = flowhooks.load_flow_map(pipe, folder)
    pipe.scheduler = mine = FlowMatchEulerDiscreteScheduler(shift=2.0)
    with pytest.raises(ModelError, match="comes from no FlowMapScheduler"):
        sampled(pipe, "sd3")
    loaded.close()
    assert pipe.scheduler is mine


def test_a_saved_pipeline_names_the_scheduler(pipe, folder, tmp_path):
    pipe.scheduler = FlowMapScheduler.from_scheduler(pipe.scheduler)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["flowhooks", "FlowMapScheduler"]
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path, **NO_T5)
    assert type(again.scheduler) is FlowMapScheduler
    with flowhooks.load_flow_map(again, folder):
        torch.testing.assert_close(sampled(again, "sd3"), flow_map("sd3")[1], rtol=1e-5, atol=1e-5)
    index["scheduler"] = ["not_there", "FlowMapScheduler"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not_there is not one of the libraries"):
        StableDiffusion3Pipeline.from_pretrained(tmp_path, **NO_T5)
    stock = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert stock.config.shift == pipe.scheduler.config.shift


def test_what_is_no_flow_map_of_this_network_is_refused_without_a_trace(pipe, folder, tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(
        (folder / "pytorch_lora_weights.safetensors").read_bytes()
    )
    scheduler = pipe.scheduler
    with pytest.raises(ModelError, match="trained no second time beside its network"):
        flowhooks.load_flow_map(pipe, tmp_path)
    with pytest.raises(ModelError, match="was trained for WanTransformer3DModel"):
        flowhooks.load_flow_map(pipe, flow_map("wan")[0])
    assert pipe.scheduler is scheduler and not hasattr(pipe.transformer, "peft_config")
    assert not pipe.transformer._forward_pre_hooks


def test_a_pipeline_that_makes_a_number_of_its_time_is_refused():
    pipe = tiny("aura-flow")
    with (
        flowhooks.attach(pipe, [{"type": "time_conditioning"}]),
        pytest.raises(ModelError, match="comes from no FlowMapScheduler"),
    ):
        sampled(pipe, "aura-flow")


#: Runs where nothing of flowhooks can be imported, then where it can.
ALONE = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "flowhooks":
            raise ImportError("there is no flowhooks here")

sys.meta_path.insert(0, Nothing())
sys.path.insert(0, sys.argv[1])
import torch
from diffusers import DiffusionPipeline
from flow_map_loader import FlowMapError, load_flow_map

def sampled():
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("one", num_inference_steps=3, output_type="latent", generator=generator, guidance_scale=1.0,
                max_sequence_length=8, height=16, width=16)[0]

pipe = DiffusionPipeline.from_pretrained(sys.argv[2], text_encoder_3=None, tokenizer_3=None)
before, scheduler = sampled(), pipe.scheduler
flow_map = load_flow_map(pipe)
found = {"alone": sampled()}
pipe.scheduler = scheduler
try:
    sampled()
except FlowMapError as error:
    assert "comes from no FlowMapScheduler" in str(error)
flow_map.close()
assert torch.equal(sampled(), before) and pipe.scheduler is scheduler and not pipe.transformer._forward_pre_hooks
assert "flowhooks" not in sys.modules

del sys.meta_path[0]
import flowhooks
flowhooks.load_flow_map(pipe, sys.argv[1])
found["ours"] = sampled()
from tests.families import tiny
from tests.flow_map.saved import sampled
for name, folder in zip(("flux", "qwen-image", "wan", "sd3"), sys.argv[4:], strict=True):
    pipe = tiny(name)
    flowhooks.load_flow_map(pipe, folder)
    found[name] = sampled(pipe, name)
assert "flowhooks.train" not in sys.modules
from safetensors.torch import save_file
save_file({name: t.contiguous() for name, t in found.items()}, sys.argv[3])
"""


@pytest.mark.slow
def test_one_file_loads_it_where_flowhooks_is_not_installed(pipe, tmp_path):
    """In a fresh process, which never imports the trainer."""
    folder, expected = flow_map("sd3")
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / LOADER).write_text(loader_source(), encoding="utf-8")
    pipe.save_pretrained(tmp_path / "base")
    others = ("flux", "qwen-image", "wan", "sd3")
    folders = [flow_map(name)[0] for name in others]
    done = subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path, tmp_path / "base", tmp_path / "found.safetensors", *folders],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(flowhooks.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    assert torch.equal(found["ours"], found["alone"])
    # Weights from a file lie elsewhere in memory, which rounds otherwise.
    torch.testing.assert_close(found["ours"], expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(found[name], flow_map(name)[1]) for name in others)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The module of the one file."""
    file = tmp_path_factory.mktemp("alone") / LOADER
    file.write_text(loader_source(), encoding="utf-8")
    names: dict = {"__name__": "flow_map_loader", "__file__": str(file)}
    sys.modules["flow_map_loader"] = type(sys)("flow_map_loader")
    vars(sys.modules["flow_map_loader"]).update(names)
    exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), vars(sys.modules["flow_map_loader"]))
    yield sys.modules["flow_map_loader"]
    del sys.modules["flow_map_loader"]


def test_the_one_file_imports_nothing_of_ours(alone):
    text = loader_source()
    assert "import flowhooks" not in text and "from flowhooks" not in text
    assert alone.FlowMapScheduler.__module__ == "flow_map_loader"


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_the_one_file_is_as_good_on_other_networks(alone, name):
    folder, expected = flow_map(name)
    pipe = tiny(name)
    with alone.load_flow_map(pipe, folder):
        assert torch.equal(sampled(pipe, name), expected)


def test_the_one_file_refuses_what_it_cannot_load(alone, pipe, folder, tmp_path):
    refused = alone.FlowMapError
    with pytest.raises(refused, match="flowhooks_modules.safetensors: missing"):
        alone.load_flow_map(pipe)
    with pytest.raises(refused, match="was trained for the WanTransformer3DModel in `transformer`"):
        alone.load_flow_map(pipe, flow_map("wan")[0])
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"a": torch.zeros(1)}, tmp_path / "my_export.safetensors")
    alone.load_flow_map(pipe, tmp_path).close()
    save_file({"a": torch.zeros(1)}, tmp_path / "pytorch_lycoris_weights.safetensors")
    with pytest.raises(refused, match="pytorch_lycoris_weights.safetensors: is no LoRA that Diffusers loads"):
        alone.load_flow_map(pipe, tmp_path)
    (tmp_path / "pytorch_lycoris_weights.safetensors").unlink()
    tensors, header = read_tensors(folder / MODULES)
    told = json.loads(header["flowhooks.modules"])
    for damage, words in (
        ({"second_time": {**told["second_time"], "embedder": "nowhere"}}, "does not fit this network .*nowhere"),
        ({"second_time": {**told["second_time"], "times": [{"name": "timestep", "dtype": "load"}]}}, "does not fit"),
        ({"second_time": {}}, "does not fit this network"),
        ({"hooks": []}, r"holds \[\], and this file loads"),
        ({"hooks": 1}, "says nothing of a flow map"),
    ):
        save_file(tensors, tmp_path / MODULES, {"flowhooks.modules": json.dumps({**told, **damage})})
        with pytest.raises(refused, match=words):
            alone.load_flow_map(pipe, tmp_path)
    assert not pipe.transformer._forward_pre_hooks and not hasattr(pipe.transformer, "peft_config")
    with alone.load_flow_map(pipe, folder), pytest.raises(refused, match="has a flow map or an adapter on already"):
        alone.load_flow_map(pipe, folder)


@pytest.mark.parametrize(
    ("modules", "adapter", "hooks", "can"),
    [
        (["time_conditioning.delta_embedder"], {"type": "lora"}, [], True),
        (["time_conditioning.delta_embedder"], None, [], True),
        (["time_conditioning.delta_embedder"], {"type": "lycoris"}, [], False),
        (["time_conditioning.delta_embedder"], {"type": "lora"}, [{"type": "adapter_gate", "sigma": 0.5}], False),
        (["time_conditioning.delta_embedder", "other.head"], {"type": "lora"}, [], False),
    ],
)
def test_it_is_written_for_what_it_can_load(modules, adapter, hooks, can):
    assert is_loadable(modules, {"adapter": adapter, "hooks": hooks}) == can


def test_the_one_file_says_what_ours_says():
    from flowhooks.adapters.names import GATE_KEY, LORA_FILE
    from flowhooks.flow_map import loader
    from flowhooks.modules_file import MANIFEST

    assert (loader.LORA, loader.MODULES, loader.GATE, loader.MANIFEST) == (LORA_FILE, MODULES, GATE_KEY, MANIFEST)


def test_another_adapter_is_not_taken_for_its_own(pipe, folder):
    pipe.load_lora_weights(folder)
    with pytest.raises(AdapterError, match="an adapter is on this pipeline already"):
        flowhooks.load_flow_map(pipe, folder)
    pipe.unload_lora_weights()
    with flowhooks.load_flow_map(pipe, folder):
        # The pipeline is learned as if no flow map were on.
        session: Any = SimpleNamespace(model=probe(pipe, height=16, width=16))
        refused = pytest.raises(ModelError, match="has a second time already")
        with refused, TimeConditioningEnabler().attached(session):
            pass


@pytest.mark.filterwarnings("ignore:.*has no second time")
def test_a_map_for_each_expert(tmp_path):
    first, _ = flow_map("wan")
    for file in first.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors, header = read_tensors(first / MODULES)
    told = {**json.loads(header["flowhooks.modules"]), "component": "transformer_2"}
    save_file(tensors, tmp_path / MODULES, {"flowhooks.modules": json.dumps(told)})
    (tmp_path / "pytorch_lora_weights.safetensors").unlink()
    pipe = learnt("wan-two-experts").pipe
    call = {"guidance_scale": 1.0, "guidance_scale_2": 1.0}
    states = [sampled(pipe, "wan-two-experts", **call)]
    second = flowhooks.load_flow_map(pipe, tmp_path)
    states.append(sampled(pipe, "wan-two-experts", **call))
    flowhooks.load_flow_map(pipe, first)
    states.append(sampled(pipe, "wan-two-experts", **call))
    assert not any(torch.equal(*pair) for pair in zip(states, states[1:], strict=False))
    # In another order than they were put on: the other still needs a scheduler that tells.
    second.close()
    with pytest.raises(ModelError, match="comes from no FlowMapScheduler"):
        sampled(pipe, "wan-two-experts", **call)


def test_of_two_experts_the_other_does_what_it_did():
    folder, _ = flow_map("wan")
    pipe = learnt("wan-two-experts").pipe
    call = {"guidance_scale": 1.0, "guidance_scale_2": 1.0}
    before = sampled(pipe, "wan-two-experts", **call)
    with pytest.warns(FlowhooksWarning, match="`transformer_2` has no second time"):
        loaded = flowhooks.load_flow_map(pipe, folder)
    assert not torch.equal(sampled(pipe, "wan-two-experts", **call), before)
    loaded.close()
    assert torch.equal(sampled(pipe, "wan-two-experts", **call), before)
