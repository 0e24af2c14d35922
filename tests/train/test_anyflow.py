"""AnyFlow runs end to end: the documented block, checkpoints, outputs, the curve, and clear errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

import flowhooks
from flowhooks.cli import main
from flowhooks.config import resolve_run
from flowhooks.errors import AdapterError, ConfigError
from flowhooks.export.flow_map_loader import loader_source
from flowhooks.export.upload import upload_set
from flowhooks.hooks import TargetReplacer
from flowhooks.hooks.interval_times.hook import IntervalTime
from flowhooks.kernel import Hook
from flowhooks.manifest import CARD, LOADER, MODULES
from flowhooks.train import train
from tests.families import learnt
from tests.train.runs import document, history, validated, weights

FLOW_MAP = {"anyflow": {"target_mode": "flow_map", "velocity": "reference", "rescale": "sample"}}
#: As AnyFlow's documentation prints it.
PRINTED = json.loads("""
{
  "model_type": "lora",
  "distillation_method": "anyflow",
  "distillation_config": {
    "anyflow": {
      "target_mode": "online_teacher",
      "teacher_rollout_steps": 1,
      "r_timestep_sampler": "uniform",
      "min_interval_ratio": 0.02,
      "gate_value": 0.25,
      "deltatime_type": "r",
      "loss_weight": 1.0
    }
  }
}
""")


def test_the_printed_block_runs_and_warns_that_it_learns_no_map(new_run, capsys):
    result = train(new_run(hooks=[], **PRINTED), progress=False)
    lines = [line for line in history(result.output_dir) if "anyflow_loss" in line]
    assert lines and all(line["anyflow_r_sensitivity"] == 0 for line in lines)
    assert all(0 <= line["anyflow_r_timestep"] < line["anyflow_timestep"] <= 1 for line in lines)
    assert all(line["anyflow_interval"] > 0 for line in lines)
    assert (result.output_dir / MODULES).is_file()
    said = capsys.readouterr().err
    assert said.count("anyflow_r_sensitivity is 0") == 1 and "raise `teacher_rollout_steps` above 1" in said


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_leaves_a_stock_lora_and_its_modules(new_run, model, tmp_path, capsys):
    run = new_run(hooks=[], method=FLOW_MAP, training={"use_ema": True})
    folder = train(run, progress=False).output_dir
    saved = load_file(folder / MODULES)
    names = [f"time_conditioning.delta_embedder.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
    assert sorted(saved) == sorted(names)
    checkpoint = weights(folder / "checkpoint-4")
    assert set(names) <= set(checkpoint)
    # What loads it where flowhooks is not installed, and the card that says so.
    assert (folder / LOADER).read_text(encoding="utf-8") == loader_source()
    assert "from flow_map_loader import load_flow_map\n\nload_flow_map(pipe)\n" in (folder / CARD).read_text(
        encoding="utf-8"
    )
    assert {LOADER, MODULES} <= set(upload_set(file.name for file in folder.iterdir()))
    stock = StableDiffusion3Pipeline.from_pretrained(model, text_encoder_3=None, tokenizer_3=None)
    embedder = stock.transformer.time_text_embed.timestep_embedder
    assert not torch.equal(saved[names[0]], embedder.linear_1.weight)
    stock.load_lora_weights(folder)
    one_is_on = pytest.warns(flowhooks.errors.FlowhooksWarning, match="one is attached already and used in its place")
    with one_is_on, flowhooks.attach(stock, folder, height=16, width=16) as session:
        (delta,) = session.assembly.modules().values()
        assert torch.equal(delta.linear_1.weight, saved[names[0]])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_resumed_run_equals_an_uninterrupted_one(new_run):
    whole = train(new_run("whole", hooks=[], method=FLOW_MAP), progress=False).output_dir
    train(new_run("parts", hooks=[], method=FLOW_MAP, training={"max_train_steps": 2}), progress=False)
    parts = train(new_run("parts", hooks=[], method=FLOW_MAP), resume="latest", progress=False).output_dir
    a, b = (weights(folder / "checkpoint-4") for folder in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_validation_draws_the_curve_and_the_command_the_grid(new_run, tmp_path, capsys):
    from PIL import Image

    look = {"prompts": ["one", "two"], "num_inference_steps": [4, 1], "height": 16, "width": 16, "every_steps": 2}
    folder = train(new_run(hooks=[], method=FLOW_MAP, validation=look), progress=False).output_dir
    lines = [line for line in history(folder) if "val/distance_1_steps" in line]
    assert [line["step"] for line in lines] == [0, 2, 4] and all(line["val/distance_1_steps"] > 0 for line in lines)
    assert [image.size for image in validated(folder, 4)] == [(16, 16)] * 4
    target = tmp_path / "pictures"
    call = ["--steps", "1,2,4", "--height", "16", "--width", "16", "--guidance-scale", "1", "--output", str(target)]
    assert main(["sample", str(folder), "--prompt", "one", "--prompt", "two", *call]) == 0
    names = {path.name for path in target.iterdir()}
    sides = {
        f"prompt_{p:03d}_00_steps_{k}_{side}.png" for p in (0, 1) for k in (1, 2, 4) for side in ("base", "trained")
    }
    assert names == {"grid.png", *sides}
    # Rows: base and trained of the first prompt, then of the second.
    drawn = Image.open(target / "grid.png")
    assert drawn.size == (3 * 16 + 2 * 2, 4 * 16 + 3 * 2)
    for row, name in enumerate(("prompt_000_00_steps_2_base.png", "prompt_000_00_steps_2_trained.png")):
        cell = drawn.crop((18, 18 * row, 34, 18 * row + 16))
        assert cell.tobytes() == Image.open(target / name).convert("RGB").tobytes()
    assert drawn.crop((18, 0, 34, 16)).tobytes() != drawn.crop((18, 18, 34, 34)).tobytes()


def test_differences_of_an_adapter_with_dropout_are_refused(new_run):
    with pytest.raises(ConfigError, match=r"\$\.method\.anyflow: .*adapter.dropout"):
        new_run(hooks=[], method=FLOW_MAP, adapter={"dropout": 0.1})
    target = TargetReplacer(target_mode="flow_map")
    small = learnt("sd3", arguments={"max_sequence_length": 8})
    refused = pytest.raises(AdapterError, match="set it to 0")
    with refused, flowhooks.attach(small, [target], adapter={"dropout": 0.1}):
        pass


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"gate_value": 1.5}, r"\$\.method\.anyflow\.gate_value"),
        ({"teacher_rollout_steps": 0}, r"\$\.method\.anyflow\.teacher_rollout_steps"),
        ({"target_mode": "flowmap"}, "did you mean 'flow_map'"),
        ({"min_interval_ratio": 1}, r"\$\.method\.anyflow\.min_interval_ratio"),
        ({"diffusion_ratio": 0.8, "zero_ratio": 0.5}, "`diffusion_ratio` and `zero_ratio`"),
    ],
)
def test_bad_options_name_their_place(new_run, block, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train(new_run(hooks=[], method={"anyflow": block}), progress=False)


def test_a_shortcut_needs_the_average(new_run):
    with pytest.raises(ConfigError, match="training.use_ema"):
        train(new_run(hooks=[], method={"anyflow": {"target_mode": "shortcut"}}), progress=False)


def test_a_teacher_needs_an_adapter(model, data, tmp_path):
    whole = document(
        model,
        data,
        tmp_path / "out",
        hooks=[],
        method={"anyflow": {}},
        adapter=None,
        training={"trainable": "transformer"},
    )
    with pytest.raises(ConfigError, match="needs a reference"):
        train(resolve_run(whole, Path("run.json")), progress=False)


def test_an_interval_cannot_begin_at_zero(new_run):
    with pytest.raises(ConfigError, match="expected a number above 0"):
        new_run(hooks=[], method={"anyflow": {"teacher_rollout_steps": 2}}, flow_custom_timesteps=[0.5, 0])


class Backwards(Hook):
    """Ends every interval above its start."""

    def views(self, step, views):
        main = views["main"]
        return {"main": replace(main, time=IntervalTime(level=main.level, end=main.level + 0.1, rows=(0,)))}

    @classmethod
    def declaration(cls, options):
        return {"slots": {"views"}, "needs": {"second_time", "sigma"}, "gives": {"r_sigma"}}


def test_an_interval_cannot_end_above_its_start(new_run):
    hooks = [{"type": f"{__name__}:Backwards"}, {"type": "target_replacer", "target_mode": "linear"}]
    with pytest.raises(RuntimeError, match="must end at or below its start"):
        train(new_run(hooks=hooks), progress=False)
