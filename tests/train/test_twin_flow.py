"""TwinFlow runs end to end: checkpoints, outputs that stock Diffusers takes, resuming, and clear errors."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

import flowhooks
from flowhooks.errors import ConfigError
from flowhooks.manifest import MODULES
from flowhooks.train import train
from tests.train.runs import history, weights

HOOKS = [
    {"type": "twin_flow_target"},
    {"type": "interval_times", "r_timestep_sampler": "mixture"},
    {"type": "twin_flow"},
]
AVERAGED = {"use_ema": True, "ema_decay": 0.9}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_a_run_leaves_a_stock_lora_and_its_modules(new_run, model):
    folder = train(new_run(hooks=HOOKS, training=AVERAGED), progress=False).output_dir
    lines = [line for line in history(folder) if "twin_flow_adversarial_loss" in line]
    assert lines[-1]["step"] == 4
    for line in lines:
        assert all(math.isfinite(line[f"twin_flow_{name}"]) for name in ("rectification_loss", "gap", "residual"))
        assert 0 <= line["twin_flow_clamped"] <= 1
    saved = load_file(folder / MODULES)
    assert saved and all(name.startswith("time_conditioning.delta_embedder.") for name in saved)
    stock = StableDiffusion3Pipeline.from_pretrained(model, text_encoder_3=None, tokenizer_3=None)
    stock.load_lora_weights(folder)
    with flowhooks.attach(stock, folder, height=16, width=16) as session:
        (delta,) = session.assembly.modules().values()
        assert torch.equal(delta.linear_1.weight, saved["time_conditioning.delta_embedder.linear_1.weight"])
        call = {"height": 16, "width": 16, "max_sequence_length": 8, "guidance_scale": 1.0}
        assert len(stock("one", num_inference_steps=1, **call).images) == 1


def test_a_resumed_run_equals_an_uninterrupted_one(new_run):
    whole = train(new_run("whole", hooks=HOOKS, training=AVERAGED), progress=False).output_dir
    train(new_run("parts", hooks=HOOKS, training={**AVERAGED, "max_train_steps": 2}), progress=False)
    parts = train(new_run("parts", hooks=HOOKS, training=AVERAGED), resume="latest", progress=False).output_dir
    a, b = (weights(folder / "checkpoint-4") for folder in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_without_an_average_the_run_is_refused(new_run):
    with pytest.raises(ConfigError, match=r"hooks\[0\]: `twin_flow_target` needs an average of the weights.*use_ema"):
        train(new_run(hooks=HOOKS), progress=False)
