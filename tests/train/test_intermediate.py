"""A checkpoint is used as a run's output folder is: sampled, exported, and started from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.adapters.files import LORA_FILE
from flowhooks.export.dialects import export_lora
from flowhooks.restore import restore_pipeline
from flowhooks.testing import tiny
from flowhooks.train import train
from tests.train.runs import weights


@pytest.mark.parametrize("use_ema", [False, True])
def test_a_checkpoint_is_used_like_a_run(new_run, tmp_path, use_ema):
    training = {"max_train_steps": 2, "use_ema": use_ema, "checkpointing_steps": 1}
    run = new_run("mine", training=training)
    train(run, progress=False)
    folder = Path(run.output_dir)
    early, last = folder / "checkpoint-1", folder / "checkpoint-2"

    # What the run wrote at its end is what its last checkpoint holds, the earlier one other weights.
    held, ended, before = (load_file(place / LORA_FILE) for place in (last, folder, early))
    assert held.keys() == ended.keys()
    assert all(torch.equal(held[key], ended[key]) for key in held)
    assert any(not torch.equal(before[key], ended[key]) for key in held)
    live = {name.removeprefix("adapter."): value for name, value in weights(last).items()}
    same = [torch.equal(held[f"transformer.{name}"], live[name]) for name in live if f"transformer.{name}" in held]
    assert same
    assert all(same) is not use_ema

    with restore_pipeline(str(early), None, "fp32").trained() as pipe:
        assert pipe.transformer.get_submodule("transformer_blocks.0.attn.to_q").lora_A
    assert export_lora(early, "comfyui", tmp_path / "out.safetensors").is_file()
    load_adapter(tiny("sd3").transformer, early)
    started = build_adapter(tiny("sd3").transformer, {**run.adapter, "init_from": str(early)})
    assert all(torch.equal(before[f"transformer.{key}"], value) for key, value in started.state_dict().items())
