"""Sizes that a pipeline refuses, from its configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flowhooks.checks.pipeline import read_index
from flowhooks.checks.sizes import edge_step, size_problems
from flowhooks.config import resolve_run
from flowhooks.data import audit
from flowhooks.errors import ModelError
from flowhooks.probe import probe
from flowhooks.probe.pictures import verify_size
from tests.cli.folders import make_run
from tests.families import PIPELINES, tiny


@pytest.mark.parametrize("name, step", [("sd3", 4), ("flux", 4), ("wan", 16), ("qwen-image", 4), ("flux2", 4)])
def test_a_pipeline_takes_multiples_of_its_step_and_nothing_between(tmp_path, name, step):
    pipe, arguments = tiny(name), dict(PIPELINES[name].arguments)
    pipe.save_pretrained(tmp_path)
    assert edge_step(tmp_path, read_index(tmp_path)[0]) == step
    side = arguments.pop("height")
    assert arguments.pop("width") == side and side % step == 0
    with pytest.raises(ModelError):
        verify_size(probe(pipe, height=side + step // 2, width=side, arguments=arguments))


def test_of_a_vae_that_is_not_known_nothing_is_said(tmp_path):
    run = make_run(tmp_path)
    file = tmp_path / "model" / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderKLMagvit"]}))
    assert edge_step(tmp_path / "model", read_index(tmp_path / "model")[0]) is None
    assert list(size_problems(resolved(run), None)) == []


def test_clips_of_a_pipeline_that_draws_pictures(tmp_path):
    run = resolved(make_run(tmp_path))
    audited = audit(run.data)
    assert list(size_problems(run, audited)) == []
    clips = [replace(each, geometry=replace(each.geometry, shown=tuple(range(5)))) for each in audited.records]
    (problem,) = size_problems(run, replace(audited, records=tuple(clips)))
    assert problem.path == "$[0].num_frames" and problem.file == str(tmp_path / "data.json")
    assert "StableDiffusion3Pipeline generates images, not videos of 5 frames; set it to 1" in problem.message


def resolved(file: Path):
    return resolve_run(json.loads(file.read_text()), file)
