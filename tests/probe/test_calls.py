"""The calls that are made of pipelines with ways of their own: sized by their picture, with prompts in a form of their
own, with frames or statistics that they change after the loop."""

from __future__ import annotations

import pytest
import torch

from flowhooks.errors import ModelError
from flowhooks.probe import exceptions, probe
from flowhooks.probe.calls import PROMPTS, call_to_make
from flowhooks.probe.values import proposed_rule
from tests.families import EVERY, checks, learnt, pictured, tiny


def test_a_picture_sets_the_size_where_the_pipeline_takes_none():
    checks.check_images("longcat-image-edit")
    model = learnt("longcat-image-edit")
    made = call_to_make(model.pipe, {"height": 48, "width": 96, "image": pictured([(10, 10)]), "prompt": "a"})
    assert made["image"].size == (96, 48) and not {"height", "width"} & made.keys()
    with pytest.raises(
        ModelError, match=r'64x96 pixels for a sample of 64x64 pixels; set `reference_resolution` to "t'
    ):
        model.encode_conditions(["a"], [{"image": pictured([(64, 96)])}])
    with pytest.raises(ModelError, match="its size is that of its image; name the argument of that image"):
        probe(model.pipe)


def test_a_picture_of_another_shape_is_refused_where_it_changes_the_size():
    model = learnt("modular-wan21-i2v")
    with pytest.raises(ModelError, match=r"makes a sample of \(4, 2, 2, 2\) of these references"):
        model.encode_conditions(["a"], [{"image": pictured([(64, 96)])}])


def test_frames_that_the_pipeline_drops_are_dropped():
    model = learnt("hunyuan-video-i2v")
    checks.check_images("hunyuan-video-i2v")
    assert model.contract.entangled and model.contract.describe()["dropped_frames"] == 4
    assert model.length == 9 and model.layout(**model.size).vae_shape[1] == 3
    condition = model.encode_examples(["a"])
    assert model.decode(torch.zeros(1, *model.sample_shape), condition=condition).shape[2] == 5


def test_prompts_of_our_own_have_the_form_that_the_pipeline_reads(monkeypatch):
    model = learnt("bria-fibo-edit")
    checks.check_images("bria-fibo-edit")
    assert call_to_make(model.pipe, {"prompt": [*PROMPTS, "cut it"]})["prompt"] == [
        '{"edit_instruction": "a"}',
        '{"edit_instruction": "two one a"}',
        "cut it",
    ]
    with pytest.raises(ModelError, match="has to be a valid edit JSON"):
        model.encode_conditions(["cut it"], [{}])
    monkeypatch.setattr("flowhooks.probe.calls.FORMS", {})
    with pytest.raises(ModelError, match="has to be a valid edit JSON"):
        probe(model.pipe, arguments=model.arguments, references=["image"])


def test_without_its_exception_kandinsky_changes_the_first_frames(monkeypatch):
    checks.check_images("kandinsky5-i2v")
    monkeypatch.setattr(exceptions, "PASSED_OVER", ())
    with pytest.raises(ModelError, match="not a rearrangement"):
        probe(tiny("kandinsky5-i2v"), arguments=EVERY["kandinsky5-i2v"].arguments, references=["image"])


def test_a_list_of_tensors_grows_item_by_item():
    layers = [torch.ones(1, 3, 4), torch.ones(1, 3, 4)]
    assert proposed_rule(layers, None) == ["each", [["axis", 0], ["axis", 0]]]
    assert proposed_rule([torch.arange(1), torch.arange(4)], None) is None, "places along the edges"
