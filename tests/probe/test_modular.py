"""Modular pipelines: their face is that of a classic one, and is off again without a trace."""

from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
import torch
from diffusers import ModularPipeline

import flowhooks
from flowhooks.config import resolve_run
from flowhooks.errors import ModelError
from flowhooks.pipeline import load_pipeline
from flowhooks.probe import probe
from flowhooks.probe.modular import PipelineFace, bare, faced
from flowhooks.probe.recorder import guiders_of
from flowhooks.sampling.encoded import EncodedPrompts
from flowhooks.sampling.images import sample_images
from flowhooks.sampling.rollout import PipelineSampler
from flowhooks.sampling.states import RolloutState
from flowhooks.sampling.steps import Sampler
from tests.families import EVERY, checks, learnt, tiny
from tests.families.modular import twins

#: With a guider, one that divides by the size of a prediction, without a twin, and one prompt a call.
KINDS = ["modular-sd3", "modular-qwen-image", "modular-anima", "modular-flux3"]


@pytest.mark.parametrize("name", KINDS)
def test_the_probe_learns_it_and_flow_dpo_takes_a_step(name):
    checks.check_flow_dpo(name)


def test_its_lora_is_loaded_by_stock_diffusers():
    checks.check_lora("modular-sd3")


def test_predictions_are_those_of_the_classic_pipeline():
    classic, modular = twins("sd3")
    models = [probe(pipe, arguments=EVERY["sd3"].arguments) for pipe in (classic, modular)]
    noisy = torch.randn(2, *models[0].sample_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (m.predict(noisy, torch.tensor([0.8, 0.3]), m.encode_prompts(checks.PROMPTS)) for m in models)
    assert torch.equal(one, other)
    assert bare(models[1].pipe) is modular


def traces(pipe: Any) -> Any:
    """All that a run could leave on a pipeline, its blocks, its scheduler and its guiders."""

    def blocks(each: Any) -> Any:
        yield each
        for inner in (getattr(each, "sub_blocks", None) or {}).values():
            yield from blocks(inner)

    parts = [pipe, *blocks(pipe._blocks), pipe.scheduler, *guiders_of(pipe)]
    return [(type(part), {key: id(value) for key, value in vars(part).items()}) for part in parts]


def test_probing_attaching_and_drawing_leave_no_trace():
    pipe = tiny("modular-wan")
    arguments = EVERY["modular-wan"].arguments
    call = {**arguments, "prompt": "a", "num_inference_steps": 2, "output_type": "pt"}
    drawn = pipe(**call, generator=torch.Generator().manual_seed(0), output="videos")
    # The first run of a scheduler sets its steps.
    before = traces(pipe)
    model = probe(pipe, arguments=arguments)
    with flowhooks.attach(model, checks.RUN) as session:
        checks.step(session, model)
    assert traces(pipe) == before
    again = pipe(**call, generator=torch.Generator().manual_seed(0), output="videos")
    assert torch.equal(torch.as_tensor(drawn), torch.as_tensor(again))
    assert all(guider._enabled for guider in guiders_of(pipe))


def test_a_face_has_the_signature_of_the_blocks_that_a_prompt_chooses():
    face = faced(tiny("modular-flux2-klein"))
    known = inspect.signature(type(face).__call__).parameters
    assert isinstance(face, PipelineFace) and type(face).__name__ == "Flux2KleinModularPipeline"
    assert {"prompt", "height", "width", "num_inference_steps", "generator"} <= known.keys()
    assert "image" not in known
    assert "image" in inspect.signature(type(faced(face, ["image"])).__call__).parameters
    with pytest.raises(TypeError, match="blocks take no argument 'widht'"):
        face(prompt="a", widht=16)
    classic = tiny("sd3")
    assert faced(classic) is classic


def test_a_state_is_visited_again_with_gradient():
    model = learnt("modular-sd3")
    player = PipelineSampler(model, EncodedPrompts(model.pipe))
    sampler = Sampler(steps=3)
    rollout = player.draw(["a photo of two", "one"], [0, 1], sampler, keep=[1], keep_velocities=[1])
    model.transformer.requires_grad_(True)
    velocity = player.velocity(RolloutState(player=player, rollout=rollout, index=1), "policy")
    torch.testing.assert_close(velocity.detach(), rollout.velocities[1], atol=1e-6, rtol=1e-6)
    velocity.square().mean().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.transformer.parameters())


def test_a_guiders_scale_is_that_of_the_run():
    pipe = faced(tiny("modular-sd3"))
    asked = {"prompts": ["two"], "negative_prompt": "", "seed": 0, "num_inference_steps": 2, "num_images_per_prompt": 1}
    size = {"height": 16, "width": 16, "arguments": {"max_sequence_length": 8}}
    weak, strong = (sample_images(pipe, guidance_scale=scale, **asked, **size)[0].tobytes() for scale in (1.5, 9.0))
    assert weak != strong
    assert pipe.guider.guidance_scale == 7.0


def section(folder: Any, **more: Any) -> Any:
    return resolve_run({"model": {"pretrained_model_name_or_path": str(folder), **more}, "hooks": []}, folder).model


def test_its_index_loads_wherever_the_folder_was_moved(tmp_path):
    pipe = tiny("modular-sd3")
    told = json.dumps(pipe.config, default=str)
    faced(pipe).save_pretrained(tmp_path / "first", safe_serialization=True)
    assert json.dumps(pipe.config, default=str) == told
    moved = (tmp_path / "first").rename(tmp_path / "second")
    found = load_pipeline(section(moved))
    assert isinstance(bare(found), ModularPipeline)
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        for one, other in zip(getattr(found, name).parameters(), getattr(pipe, name).parameters(), strict=True):
            assert torch.equal(one, other)
    index = moved / "modular_model_index.json"
    (moved / "vae").rename(tmp_path / "vae")
    with pytest.raises(ModelError, match="'vae' is in .*first', which is neither a folder 'vae'"):
        load_pipeline(section(moved))
    index.write_text(index.read_text().replace('"AutoencoderKL"', '"AutoencoderKL"').replace("diffusers", "stranger"))
    with pytest.raises(ModelError, match="made by 'stranger'"):
        load_pipeline(section(moved))
