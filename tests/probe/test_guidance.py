"""What is said of a pipeline whose guidance cannot be switched off, and how often it is asked."""

from __future__ import annotations

import pytest
from diffusers import StableDiffusion3Pipeline

from flowhooks.errors import ModelError
from flowhooks.probe import guidance, probe
from tests.families import tiny

SHORT = {"max_sequence_length": 8, "height": 16, "width": 16}


@pytest.fixture
def walks(monkeypatch):
    """Every call that was tried."""
    tried, walked = [], guidance.walked

    def counted(pipe, networks, call, *rest, **options):
        tried.append({name: value for name, value in call.items() if "guidance_scale" in name})
        return walked(pipe, networks, call, *rest, **options)

    monkeypatch.setattr(guidance, "walked", counted)
    return tried


def test_guidance_that_is_always_on(monkeypatch, walks):
    monkeypatch.setattr(StableDiffusion3Pipeline, "do_classifier_free_guidance", property(lambda pipe: True))
    with pytest.raises(ModelError, match="one sample a call: classifier-free guidance cannot be switched off$"):
        probe(tiny("sd3"), arguments=SHORT)
    assert len(walks) > 1 and all(walks.count(call) == 1 for call in walks), "no call is tried twice"


def test_guidance_that_is_always_on_and_refuses_a_scale(monkeypatch):
    """What came of the scales that ran counts, not the refusal of another."""
    call = StableDiffusion3Pipeline.check_inputs

    def check_inputs(pipe, *args, **options):
        if pipe.guidance_scale == 1:
            raise ValueError("a scale of 1 is not for me")
        return call(pipe, *args, **options)

    monkeypatch.setattr(StableDiffusion3Pipeline, "do_classifier_free_guidance", property(lambda pipe: True))
    monkeypatch.setattr(StableDiffusion3Pipeline, "guidance_scale", property(lambda pipe: asked[0]))
    monkeypatch.setattr(StableDiffusion3Pipeline, "check_inputs", check_inputs)
    asked, walked = [1.0], guidance.walked

    def told(pipe, networks, call, *rest, **options):
        asked[0] = call["guidance_scale"]
        return walked(pipe, networks, call, *rest, **options)

    monkeypatch.setattr(guidance, "walked", told)
    with pytest.raises(ModelError, match=r"cannot be switched off \(a scale of 1 is not for me\)"):
        probe(tiny("sd3"), arguments=SHORT)


def test_a_pipeline_that_does_not_run_at_all(walks):
    with pytest.raises(ModelError, match="cannot be run with .*: `height` and `width` have to be divisible by"):
        probe(tiny("sd3"), arguments={**SHORT, "height": 17})
    assert all(walks.count(call) == 1 for call in walks)
