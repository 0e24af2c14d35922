"""Prompts of runs that draw are encoded once and kept on disk: the next run with the same ones asks no text encoder."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors import safe_open

from flowhooks.cli import main
from flowhooks.data import PromptCache
from flowhooks.data.store import IN_MEMORY_BYTES
from flowhooks.errors import DataError, FlowhooksWarning
from flowhooks.pipeline import load_pipeline
from flowhooks.probe import probe
from flowhooks.sampling.encoded import EncodedPrompts, NotStorable
from flowhooks.sampling.rollout import PipelineSampler, Sampler
from flowhooks.train import setup, train
from tests.families import learnt
from tests.forked import side_by_side
from tests.sampling.test_rollout import GUIDED
from tests.train.runs import document, weights, write_model

DRAWN = {
    "data": None,
    "hooks": [],
    "training": {"max_train_steps": 1},
    "validation": {"height": 16, "width": 16, "prompts": ["three"], "num_inference_steps": 1},
}
REWARDS = [{"type": "flowhooks.digits.rewards:Ink"}]
GUIDANCE = {"num_inference_steps": 2, "pipeline_arguments": {"guidance_scale": 2.0, "negative_prompt": "none"}}
METHODS = {
    "flow_grpo": {"rewards": REWARDS, "group_size": 2, "visits": 1, **GUIDANCE},
    "adjoint_matching": {"rewards": REWARDS, "truncate": {"last_k": 1}, **GUIDANCE},
}
PROMPTS = ["one", "a photo of two"]


def asked(method: str, prompts=PROMPTS, **options) -> dict:
    return {**DRAWN, "method": {method: {**METHODS[method], "prompts": prompts, **options}}}


@pytest.fixture
def computed(monkeypatch):
    """How often a text encoder computed since it was last cleared, after the pipeline was learned."""
    calls = []

    def watched(section):
        pipe = load_pipeline(section)
        for name, part in pipe.components.items():
            # A layer: the whole is also called where the probe answers in its place.
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


def trained(run, **more) -> dict[str, torch.Tensor]:
    return weights(train(run, progress=False, **more).output_dir / f"checkpoint-{run.training['max_train_steps']}")


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def shards(folder):
    return sorted((folder / "prompts").iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_the_second_run_asks_no_text_encoder_and_is_the_same(new_run, computed, tmp_path, method):
    sections = {**asked(method), "cache_dir": str(tmp_path / "cache")}
    first = trained(new_run("first", **sections))
    assert computed
    bytes_of = {path: path.read_bytes() for path in shards(tmp_path / "cache")}
    computed.clear()
    assert same(trained(new_run("second", **sections)), first) and not computed
    # A run that goes on.
    longer = new_run("second", **{**sections, "training": {"max_train_steps": 2}})
    trained(longer, resume="latest")
    assert not computed and {path: path.read_bytes() for path in shards(tmp_path / "cache")} == bytes_of
    # Embeddings that never were on disk train to the same weights.
    kept_in_memory = new_run("memory", **{**sections, "cache_dir": str(tmp_path / "other")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "PromptCache", lambda *_, **__: None)
        assert same(trained(kept_in_memory), first) and computed
    assert not (tmp_path / "other" / "prompts").exists()
