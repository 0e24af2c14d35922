"""Runs that go on from a model with a second time of its own, on disk as its makers publish it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AnyFlowPipeline
from PIL import Image

from flowhooks.adapters import load_adapter
from flowhooks.cli import main
from flowhooks.config import resolve_run
from flowhooks.errors import ModelError
from flowhooks.train import train
from tests.families import tiny
from tests.train.runs import history, validated

CALL = {"num_frames": 1, "max_sequence_length": 16}
SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anyflow") / "model"
    tiny("anyflow").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four captioned pictures of 32 pixels: videos of one frame."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for i, caption in enumerate(("one", "two", "a photo", "three")):
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text(caption, encoding="utf-8")
    file = root / "data.json"
    file.write_text(json.dumps([{"id": "pictures", "instance_data_dir": str(root)}]), encoding="utf-8")
    return file


def finished(model, data, folder, **options):
    run = {
        "model": {"pretrained_model_name_or_path": str(model), "pipeline_arguments": CALL},
        "adapter": {"type": "lora", "rank": 2, "alpha": 4},
        "data": str(data),
        "method": {"anyflow": options},
        "training": {"max_train_steps": 2, "train_batch_size": 2, "learning_rate": 0.1, "log_every_steps": 1},
        "validation": {"prompts": ["one"], "every_steps": 2, "num_inference_steps": [1, 2], **SIZE},
        "logging": {"trackers": []},
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
    }
    return train(resolve_run(run, folder / "run.json"), progress=False).output_dir


def drawn(pipe):
    """Latents of a video of five frames in two steps."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call = {**CALL, **SIZE, "num_frames": 5, "num_inference_steps": 2, "output_type": "latent"}
    return pipe(prompt="one", generator=generator, **call).frames


def size(picture):
    with Image.open(picture) as opened:
        return opened.size


@pytest.mark.parametrize("mode", ["flow_map", "linear"])
def test_a_lora_is_trained_and_loads_in_the_stock_pipeline(mode, model, data, tmp_path):
    out = finished(model, data, tmp_path, target_mode=mode)
    lines = [line for line in history(out) if "anyflow_interval" in line]
    assert len(lines) == 2 and all(np.isfinite(line["loss"]) for line in lines)
    assert not (out / "flowhooks_modules.safetensors").exists(), "the model's own second time is kept"
    attached, stock = (AnyFlowPipeline.from_pretrained(model) for _ in range(2))
    base = drawn(stock)
    load_adapter(attached.transformer, out)
    stock.load_lora_weights(out)
    torch.testing.assert_close(drawn(stock), drawn(attached), rtol=1e-4, atol=1e-5)
    assert (drawn(stock) - base).abs().max() > 1e-2
    assert [image.size for image in validated(out, 2)] == [(32, 32)] * 2, "a frame for each step count"
    grid = ["--height", "32", "--width", "32", "--output", str(tmp_path / "drawn.png")]
    assert main(["sample", str(out), "--prompt", "one", "--steps", "1,2", "--guidance-scale", "1", *grid]) == 0
    assert size(tmp_path / "drawn.png") == (66, 66), "the base's row above the trained one's"


def test_options_against_the_models_own_are_refused_before_training(model, data, tmp_path):
    with pytest.raises(ModelError, match="`gate_value` is 0.7, but AnyFlowPipeline .* built with 0.25"):
        finished(model, data, tmp_path, target_mode="linear", gate_value=0.7)
