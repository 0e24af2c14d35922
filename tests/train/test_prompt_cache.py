"""Runs that draw, and validation, keep their encoded prompts: the next run with the same ones asks no text encoder."""

from __future__ import annotations

import pytest
import torch

from flowhooks.pipeline import load_pipeline
from flowhooks.probe import probe
from flowhooks.train import setup, train
from flowhooks.train.setup import prepared
from tests.train.runs import weights

DRAWN = {
    "data": None,
    "hooks": [],
    "training": {"max_train_steps": 1},
    "validation": {"height": 16, "width": 16, "prompts": ["three"], "num_inference_steps": 1},
}
REWARDS = [{"type": "flowhooks.digits.rewards:Ink"}]
SAMPLING = {
    "prompts": ["one", "a photo of two"],
    "num_inference_steps": 2,
    "pipeline_arguments": {"guidance_scale": 2.0, "negative_prompt": "none"},
}
METHODS = {
    "flow_grpo": {"rewards": REWARDS, "group_size": 2, "visits": 1},
    "adjoint_matching": {"rewards": REWARDS, "truncate": {"last_k": 1}},
    "flow_opd": {"visits": 1},
}


def asked(method: str, **options) -> dict:
    return {**DRAWN, "method": {method: {**SAMPLING, **METHODS[method], **options}}}


@pytest.fixture
def computed(monkeypatch):
    """The text encoders that computed since the list was cleared, or the pipeline was last learned."""
    calls = []

    def watched(section):
        pipe = load_pipeline(section)
        for name, part in pipe.components.items():
            # Layers: the whole is also called where the probe answers in its place.
            for layer in part.children() if name.startswith("text_encoder") and part else ():
                layer.register_forward_hook(lambda *_, name=name: calls.append(name))
        return pipe

    def probed(*args, **kwargs):
        model = probe(*args, **kwargs)
        calls.clear()
        return model

    monkeypatch.setattr(setup, "load_pipeline", watched)
    monkeypatch.setattr(setup, "probe", probed)
    return calls


def test_the_second_run_and_a_resumed_one_ask_no_text_encoder_and_are_the_same(new_run, computed, tmp_path):
    sections = {**asked("flow_grpo"), "cache_dir": str(tmp_path / "cache")}

    def trained(name):
        return weights(train(new_run(name, **sections), progress=False).output_dir / "checkpoint-1")

    first = trained("first")
    assert computed
    kept = {path: path.read_bytes() for path in (tmp_path / "cache" / "prompts").iterdir()}
    second = trained("second")
    assert not computed
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    with prepared(new_run("second", **{**sections, "training": {"max_train_steps": 2}}), "latest", False):
        assert not computed
    assert {path: path.read_bytes() for path in (tmp_path / "cache" / "prompts").iterdir()} == kept


@pytest.mark.parametrize("method", ["adjoint_matching", "flow_opd"])
def test_every_set_of_arguments_is_found_again(new_run, computed, finished, tmp_path, method):
    """That without guidance for adjoint matching, and a teacher's own."""
    taught = {"path": str(finished), "pipeline_arguments": {"guidance_scale": 1.0}}
    options = {"teachers": {"t": taught}} if method == "flow_opd" else {}
    sections = {**asked(method, **options), "cache_dir": str(tmp_path / "cache")}
    for again in (False, True):
        with prepared(new_run(**sections), None, False) as job:
            assert bool(computed) is not again
            if again:
                next(job.computed(next(job.batches()), log=True)).loss.backward()
    assert not computed
