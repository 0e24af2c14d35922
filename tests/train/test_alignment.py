"""A vision model as the teacher, through a whole run."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from flowhooks.adapters.names import LORA_FILE
from flowhooks.train import train
from tests.hooks.aligned import write_dinov2
from tests.train.runs import history, weights


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_towards_a_vision_model_resumes(new_run, tmp_path, capsys):
    hook = {
        "type": "feature_alignment",
        "source": "external",
        "block_index": 0,
        "encoder": str(write_dinov2(tmp_path / "dinov2")),
        "projector_width": 16,
    }
    validation = {"prompts": ["one"], "every_steps": 2, "num_inference_steps": 1, "guidance_scale": 1.0, "holdout": 1}
    sections = {"hooks": [hook], "validation": validation}
    straight = train(new_run("straight", **sections), progress=False).output_dir
    lines = [line for line in history(straight) if "crepa_loss" in line]
    assert lines
    assert all(line["alignment_loss"] == pytest.approx(0.5 * line["crepa_loss"]) for line in lines)
    assert [line for line in history(straight) if "val/crepa_loss" in line]
    assert capsys.readouterr().err.count("resampled from 3 x 3 to 4 x 4 tokens") == 1
    train(new_run("parts", training={"max_train_steps": 2}, **sections), progress=False)
    parts = train(new_run("parts", **sections), resume="latest", progress=False).output_dir
    ours, theirs = (weights(folder / "checkpoint-4") for folder in (parts, straight))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert not [name for name in load_file(straight / LORA_FILE) if "projector" in name]
