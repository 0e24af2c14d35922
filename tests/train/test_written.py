"""Files are read back when they are written: they hold what was trained, finite, and it changes something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowhooks.config import resolve_run
from flowhooks.errors import AdapterError, FlowhooksWarning, TrainingError
from flowhooks.train import train
from flowhooks.train.outputs import packed_intermediate, write_outputs
from tests.laws.cases import ADAPTERS, looping

LAYER = "transformer_blocks.0.attn.to_q"


def run_in(tmp_path):
    model = {"pretrained_model_name_or_path": "somebody/something"}
    return resolve_run({"model": model, "hooks": [], "output_dir": str(tmp_path / "out")}, tmp_path / "run.json")


def moved(session):
    with torch.no_grad():
        for parameter in session.parameters().values():
            parameter.add_(0.1)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_kind_is_read_back_and_one_that_changes_nothing_is_refused(tmp_path, adapter):
    run = run_in(tmp_path)
    with looping("sft", adapter) as loop:
        with pytest.raises(TrainingError, match="changes nothing: each layer has a factor that is 0") as found:
            write_outputs(run, loop.session, loop.model.pipe, {}, [])
        assert str(run.output_dir) in str(found.value)
        moved(loop.session)
        write_outputs(run, loop.session, loop.model.pipe, {}, [])
    assert (Path(run.output_dir) / "README.md").is_file()


def test_a_run_whose_rewards_said_nothing_is_warned_of(tmp_path):
    run = run_in(tmp_path)
    with looping("flow_grpo") as loop, pytest.warns(FlowhooksWarning, match="no reward tells samples apart"):
        write_outputs(run, loop.session, loop.model.pipe, {}, [])


def on_a_bad_disk(monkeypatch, session, change):
    """The disk keeps something else than what was written to it."""
    packed = session.adapter.packed

    def changing(metadata):
        write = packed(metadata)

        def written(folder):
            file = write(folder)
            tensors = load_file(file)
            with safe_open(file, framework="pt") as handle:
                header = handle.metadata()
            change(tensors)
            save_file(tensors, file, metadata=header)
            return file

        return written

    monkeypatch.setattr(session.adapter, "packed", changing)


@pytest.mark.parametrize("write", ["outputs", "intermediate"])
def test_a_file_that_is_not_what_was_trained_is_named(tmp_path, monkeypatch, write):
    run, name = run_in(tmp_path), f"{LAYER}.lora_B.weight"
    with looping("sft") as loop:
        moved(loop.session)
        on_a_bad_disk(monkeypatch, loop.session, lambda tensors: tensors[f"transformer.{name}"].view(-1)[3:4].neg_())
        with pytest.raises(TrainingError, match="1 of 36 tensors are not those that were trained") as found:
            if write == "outputs":
                write_outputs(run, loop.session, loop.model.pipe, {}, [])
            else:
                (tmp_path / "checkpoint").mkdir()
                packed_intermediate(run, loop.session)(tmp_path / "checkpoint")
    assert "pytorch_lora_weights.safetensors" in str(found.value) and f"`{name}`" in str(found.value)


def test_weights_that_are_not_finite_are_named(tmp_path):
    run = run_in(tmp_path)
    with looping("sft") as loop:
        moved(loop.session)
        with torch.no_grad():
            loop.session.parameters()[f"{LAYER}.lora_B.weight"][0, 0] = float("nan")
        with pytest.raises(AdapterError, match=f"pytorch_lora_weights.safetensors: `.*{LAYER}.lora_B.weight` has NaN"):
            write_outputs(run, loop.session, loop.model.pipe, {}, [])


@pytest.mark.parametrize(
    ("how", "words"), [("detach", "though the prediction depends on them"), ("freeze", "became frozen")]
)
def test_a_run_with_a_dead_layer_stops_at_its_first_logged_step_after_enough(new_run, how, words):
    hook = {"type": "tests.train.toys:Detaching", "layer": LAYER, "how": how}
    run = new_run(hooks=[hook], adapter={"type": "lora", "rank": 2}, training={"max_train_steps": 12})
    with pytest.raises(TrainingError, match=words) as found:
        train(run, progress=False)
    assert f"2 of 36 trained tensors (`{LAYER}.lora_A.weight`, `{LAYER}.lora_B.weight`)" in str(found.value)
    lines = (Path(run.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    # Steps 1, 2, 4, 6 were logged; what is found out at 8 is not.
    assert len(lines) == 4


def test_a_run_that_only_warms_up_is_stopped_before_it_writes_weights(new_run):
    training = {"max_train_steps": 1, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 5}
    run = new_run(training=training)
    with pytest.raises(TrainingError, match="the learning rate was 0 in every step"):
        train(run, progress=False)
    assert not list(Path(run.output_dir).glob("*.safetensors"))
