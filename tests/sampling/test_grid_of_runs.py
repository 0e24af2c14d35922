"""The grid of a finished run: the base above what was trained, each on its own network, both under one scheduler."""

from __future__ import annotations

import json

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline
from PIL import Image

from flowhooks import restore
from flowhooks.cli import main
from flowhooks.pipeline import load_pipeline
from flowhooks.probe.offloading import BlockOffload
from flowhooks.restore import restore_pipeline
from flowhooks.sampling.images import sample_images
from flowhooks.stage import Stage
from tests.export.wan_runs import BESIDE, finished, write_pipeline
from tests.families import PIPELINES
from tests.train.test_stage import DEVICE, followed

ARGUMENTS = PIPELINES["wan"].arguments
SIZE = {"height": 32, "width": 32}
HOST = {"gradient_checkpointing": True, "offload": "blocks"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Wan with the scheduler it is released with."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return write_pipeline(tmp_path_factory.mktemp("wan") / "model", scheduler=scheduler)


def drawn(run, folder, *more):
    """The pictures of the command, by name."""
    call = ["--prompt", "one", "--steps", "2,3", "--height", "32", "--width", "32", "--guidance-scale", "1"]
    assert main(["sample", str(run), *call, "--output", str(folder), *more]) == 0
    return {path.stem: np.asarray(Image.open(path)) for path in folder.iterdir()}


def watching(monkeypatch):
    """Follow the components of every pipeline that is restored from here on."""
    watcher = followed(monkeypatch)
    monkeypatch.setattr(restore, "load_pipeline", lambda section: watcher.watch(load_pipeline(section)))
    monkeypatch.setattr(restore, "Stage", lambda pipe, device: Stage(pipe, DEVICE))
    return watcher


def alone(pipe, steps):
    (picture,) = sample_images(
        pipe, ["one"], num_inference_steps=steps, guidance_scale=1.0, **SIZE, arguments={**ARGUMENTS, **SIZE}
    )
    return np.asarray(picture)


def test_both_rows_are_drawn_under_the_scheduler_that_the_map_needs(model, tmp_path, capsys, monkeypatch):
    run = finished(model, tmp_path / "out")
    found = drawn(run, tmp_path / "pictures")
    assert "FlowMatchEulerDiscreteScheduler: the pipeline's UniPCMultistepScheduler cannot" in capsys.readouterr().out
    base = WanPipeline.from_pretrained(model)
    under_its_own = alone(base, 3)
    base.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    for steps in (2, 3):
        assert (found[f"prompt_000_00_steps_{steps}_base"] == alone(base, steps)).all()
        assert (found[f"prompt_000_00_steps_{steps}_trained"] != alone(base, steps)).any()
    assert (found["prompt_000_00_steps_3_base"] != under_its_own).any()
    # The same images where components take turns on the device, and where the run kept blocks on the host.
    watcher, opened, begin = watching(monkeypatch), [], BlockOffload.open
    monkeypatch.setattr(BlockOffload, "open", lambda offload: (opened.append(offload), begin(offload))[1])
    document = json.loads((run / "run.json").read_text())
    for name, section, more in (("turns", {}, ["--offload"]), ("blocks", HOST, [])):
        document["model"] |= section
        (run / "run.json").write_text(json.dumps(document))
        watcher.moments.clear(), watcher.here.clear()
        again = drawn(run, tmp_path / name, *more)
        assert again.keys() == found.keys() and all((again[each] == found[each]).all() for each in found)
        assert watcher.together() == {frozenset(), frozenset({"text"}), frozenset({"transformer"}), frozenset({"vae"})}
        assert len(opened) == (name == "blocks")


def test_a_plain_run_keeps_the_pipelines_own(model, tmp_path, capsys):
    found = drawn(finished(model, tmp_path / "out", method=None, hooks=[]), tmp_path / "pictures")
    assert "cannot sample flow maps" not in capsys.readouterr().out
    assert (found["prompt_000_00_steps_3_base"] == alone(WanPipeline.from_pretrained(model), 3)).all()


def test_modules_that_make_no_flow_map_keep_it_too(model, tmp_path):
    run = finished(model, tmp_path / "out", method=None, hooks=[BESIDE])
    restored = restore_pipeline(str(run), None, "fp32", allow_imports=True)
    assert restored.modules is not None
    with restored.trained() as pipe:
        assert type(pipe.scheduler) is UniPCMultistepScheduler


def test_the_adapter_of_the_second_expert_is_put_on_the_second(tmp_path):
    model = write_pipeline(tmp_path / "model", "wan-two-experts")
    section = {"component": "transformer_2"}
    run = finished(model, tmp_path / "out", name="wan-two-experts", section=section, method=None, hooks=[])
    restored = restore_pipeline(str(run), None, "fp32")
    with restored.trained() as pipe:
        assert hasattr(pipe.transformer_2, "peft_config") and not hasattr(pipe.transformer, "peft_config")
        wanted = alone(pipe, 2)
    # As the run's card says.
    stock = WanPipeline.from_pretrained(model)
    stock.load_lora_weights(run, weight_name="pytorch_lora_weights.safetensors", load_into_transformer_2=True)
    assert not hasattr(stock.transformer, "peft_config")
    assert abs(alone(stock, 2).astype(int) - wanted).max() <= 1
