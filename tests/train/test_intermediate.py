"""A checkpoint is used as a run's output folder is: sampled, exported, and started from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowhooks.adapters import build_adapter, load_adapter
from flowhooks.adapters.names import LORA_FILE
from flowhooks.cli import main
from flowhooks.export.dialects import export_lora
from flowhooks.restore import restore_pipeline
from flowhooks.train import train
from tests.families import tiny
from tests.train.runs import make_run, weights

QUICK = {"max_train_steps": 2, "checkpointing_steps": 1}


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


@pytest.fixture(scope="module")
def early(model, data, cache, tmp_path_factory):
    """The first checkpoint of a run of two steps."""
    folder = tmp_path_factory.mktemp("typed") / "mine"
    train(make_run(model, data, folder, cache_dir=str(cache), training=QUICK), progress=False)
    return folder / "checkpoint-1"


def test_a_checkpoint_is_sampled_by_its_name(early, tmp_path, capsys):
    small = ["--prompt", "a", "--steps", "1", "--height", "16", "--width", "16", "--guidance-scale", "1"]
    assert main(["sample", str(early), *small, "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2, capsys.readouterr()


@pytest.mark.parametrize(
    "asked, name",
    [
        (["--format", "diffusers"], "checkpoint-1"),
        (["--format", "comfyui"], "checkpoint-1_comfyui"),
        ([], "checkpoint-1_portable"),
    ],
)
def test_a_checkpoint_is_exported_by_its_name_to_where_the_run_removes_nothing(early, capsys, asked, name):
    held = {path.name: path.read_bytes() for path in early.iterdir()}
    file = early.parent / f"{name}.safetensors"
    assert main(["export", str(early), *asked]) == 0
    assert capsys.readouterr().out.startswith(f"Wrote {file}: ")
    same = name == "checkpoint-1"
    assert load_file(file).keys() and (not same or file.read_bytes() == (early / LORA_FILE).read_bytes())
    assert {path.name: path.read_bytes() for path in early.iterdir()} == held
    # What is there is never overwritten.
    assert main(["export", str(early), *asked]) == 2
    assert "exists already" in capsys.readouterr().err


def test_from_within_a_checkpoint_too(early, monkeypatch, capsys):
    monkeypatch.chdir(early)
    assert main(["export", ".", "--format", "kohya"]) == 0
    assert (early.parent / "checkpoint-1_kohya.safetensors").is_file()


def test_of_a_run_there_is_nothing_to_write_in_its_own_format(early, capsys):
    folder = early.parent
    before = (folder / LORA_FILE).read_bytes()
    assert main(["export", str(folder), "--format", "diffusers"]) == 2
    assert "in format 'diffusers' as it stands" in capsys.readouterr().err
    assert (folder / LORA_FILE).read_bytes() == before


def test_a_checkpoint_is_published_by_its_name(early, server, token, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    assert main(["push", str(early), "--repo-id", "me/my-dpo"]) == 0, capsys.readouterr().err
    assert sorted(server.files) == [LORA_FILE, "run.json"]
    assert "me/my-dpo" in capsys.readouterr().out
