"""Runs that draw what they train on, end to end: no data, teachers by file, resume, a reward."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from flowhooks.cli import main
from flowhooks.errors import CheckpointError, ConfigError
from flowhooks.pipeline import load_pipeline
from flowhooks.train import train
from flowhooks.train.checkpoint import read
from tests.train.runs import document, history, validated, weights
from tests.train.test_resume import equal, killed_at

PROMPTS = [
    {"prompt": "one", "task": "ink"},
    {"prompt": "a photo of two", "task": "ink"},
    {"prompt": "six", "task": "base"},
]
DRAWN = {"data": None, "hooks": [], "validation": {"height": 16, "width": 16}}
GRPO = {
    "prompts": ["one", "two"],
    "rewards": [{"type": "flowhooks.digits.rewards:Ink"}],
    "group_size": 2,
    "num_inference_steps": 4,
    "visits": 2,
}
UPDATES = {**GRPO, "updates_per_rollout": 3, "visits": 1, "trust": "divergence", "window": [0, 3], "window_every": 3}
ADJOINT = {
    "prompts": ["one", "two"],
    "rewards": [{"type": "flowhooks.digits.rewards:Ink"}],
    "num_inference_steps": 4,
    "truncate": {"last_k": 2},
    "pipeline_arguments": {"guidance_scale": 2.0},
}
OPD = {"num_inference_steps": 4, "visits": 2, "pipeline_arguments": {"guidance_scale": 2.0}}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def teacher(new_run):
    return train(new_run("teacher", **DRAWN, method={"flow_grpo": GRPO}), progress=False).output_dir


def taught(teacher, tmp_path, **changes) -> dict:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(each) for each in PROMPTS), encoding="utf-8")
    block = {**OPD, "prompts": str(file), "teachers": {"ink": str(teacher)}, **changes}
    return {**DRAWN, "method": {"flow_opd": block}}


def test_a_teacher_by_reward_and_a_student_of_it(new_run, teacher, tmp_path):
    assert [line for line in history(teacher) if "flow_grpo_reward_ink" in line]
    folder = train(new_run("student", **taught(teacher, tmp_path)), progress=False).output_dir
    lines = [line for line in history(folder) if "flow_opd_gap" in line]
    assert lines
    assert lines[-1]["epoch"] == pytest.approx(4 * 2 / len(PROMPTS)), "an epoch is every prompt once"
    assert all(line["flow_opd_gap"] > 0 for line in lines)
    assert (folder / "pytorch_lora_weights.safetensors").is_file()
    assert not [name for name in weights(folder / "checkpoint-4") if "ink" in name]


def test_a_resumed_run_equals_an_uninterrupted_one(new_run, teacher, tmp_path):
    sections = taught(teacher, tmp_path, tasks_take_turns=True)
    training = {"gradient_accumulation_steps": 2, "use_ema": True}
    straight = train(new_run("straight", training=training, **sections), progress=False).output_dir
    train(new_run("parts", training={**training, "max_train_steps": 2}, **sections), progress=False)
    parts = train(new_run("parts", training=training, **sections), resume="latest", progress=False).output_dir
    ours, theirs = (weights(folder / "checkpoint-4") for folder in (parts, straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_run_by_the_rewards_gradient_resumes_with_its_scale(new_run):
    sections = {**DRAWN, "method": {"adjoint_matching": ADJOINT}}
    straight = train(new_run("straight", **sections), progress=False).output_dir
    assert [line for line in history(straight) if line.get("adjoint_reward_scale", 0) > 0]
    train(new_run("parts", training={"max_train_steps": 2}, **sections), progress=False)
    parts = train(new_run("parts", **sections), resume="latest", progress=False).output_dir
    ours, theirs = (weights(folder / "checkpoint-4") for folder in (parts, straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("method", ["flow_grpo", "flow_grpo, updates", "flow_opd"])
def test_a_killed_run_that_goes_on_is_the_same_to_the_last_state(new_run, teacher, tmp_path, method):
    grpo = {"flow_grpo": {"flow_grpo": GRPO}, "flow_grpo, updates": {"flow_grpo": UPDATES}}
    sections = {**DRAWN, "method": grpo[method]} if method in grpo else taught(teacher, tmp_path)
    sections["training"] = {"checkpointing_steps": 2, "checkpoints_total_limit": None}
    if method == "flow_grpo, updates":
        # Two rollouts are under way at the checkpoint, and the order of visits has gone half through.
        sections["training"]["gradient_accumulation_steps"] = 2
    whole = train(new_run("whole", **{**sections, "hooks": [killed_at(99)]}), progress=False)
    stopped = new_run("stopped", **{**sections, "hooks": [killed_at(2)]})
    with pytest.raises(SystemExit):
        train(stopped, progress=False)
    torch.manual_seed(1234)
    resumed = train(stopped, resume="latest", progress=False)
    a, b = whole.output_dir / "checkpoint-4", resumed.output_dir / "checkpoint-4"
    for stem in ("parameters", "optimization", "session", "process_0"):
        assert equal(read(a, stem), read(b, stem)), stem


def test_another_teacher_on_resume_stops_the_run(new_run, teacher, tmp_path):
    sections = taught(teacher, tmp_path)
    train(new_run("parts", training={"max_train_steps": 2}, **sections), progress=False)
    other = train(
        new_run("other", **DRAWN, method={"flow_grpo": GRPO}, training={"seed": 5}), progress=False
    ).output_dir
    name = "pytorch_lora_weights.safetensors"
    (teacher / name).write_bytes((other / name).read_bytes())
    with pytest.raises(CheckpointError, match="the teacher 'ink' .* is not the file that the checkpoint was"):
        train(new_run("parts", **sections), resume="latest", progress=False)


def test_check_and_explain_need_no_data(model, data, teacher, tmp_path, capsys):
    file = tmp_path / "run.json"
    written = document(model, data, tmp_path / "out", **taught(teacher, tmp_path))
    file.write_text(json.dumps(written), encoding="utf-8")
    assert main(["check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "none: this run trains on its own samples" in said
    assert "on_policy_rollout" in said
    assert main(["explain", str(file)]) == 0
    # 4 steps drawn; 2 states, each seen by student, anchor and teacher.
    assert "10 per micro-batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routes": {"ink": "pen"}}, "`routes` lead to 'pen'"),
        ({"prompts": []}, r"\$\.method\.flow_opd\.prompts"),
    ],
)
def test_mistakes_are_told_before_the_model_is_loaded(new_run, tmp_path, changes, message):
    sections = taught(tmp_path / "nowhere", tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        train(new_run("out", **sections), progress=False)


def test_a_run_without_prompts_needs_data(new_run, tmp_path):
    sections = taught(tmp_path / "nowhere", tmp_path, prompts=None)
    with pytest.raises(ConfigError, match=r"\$\.data: is missing"):
        train(new_run("out", **sections), progress=False)


def test_a_gate_is_in_the_file_and_is_obeyed_from_then_on(new_run, model, tmp_path, capsys):
    """By validation, by `flowhooks sample`, and by the lines of the card in stock Diffusers."""
    gated = {**ADJOINT, "early": "gate", "truncate": {"sigma_max": 0.8}, "control_ratio": 1.0}
    drawn = {"height": 16, "width": 16, "guidance_scale": 1.0, "num_inference_steps": 4, "prompts": ["one"]}
    training = {"learning_rate": 0.05}
    sections = {**DRAWN, "validation": drawn, "training": training, "method": {"adjoint_matching": gated}}
    folder = train(new_run("gated", **sections), progress=False).output_dir
    seen = np.asarray(validated(folder, 4)[0])

    size = ["--height", "16", "--width", "16", "--steps", "4", "--guidance-scale", "1", "--prompt", "one"]
    for name, more in (("noted", []), ("everywhere", ["--adapter-below", "1"])):
        assert main(["sample", str(folder), *size, "--output", str(tmp_path / f"{name}.png"), *more]) == 0
    said = capsys.readouterr().out
    assert "off in steps that start above sigma 0.8\n" in said and "above sigma 1\n" in said
    noted, everywhere = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("noted", "everywhere"))
    assert (noted == seen).all() and (noted != everywhere).any()

    section = {"pretrained_model_name_or_path": str(model), "revision": None, "variant": None, "dtype": "fp32"}
    pipe = load_pipeline(section)
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    pipe.disable_lora()
    card = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    own: dict = {}
    exec(card[card.index("def gate") : card.index("pipe.disable_lora")], own)  # our own card
    call = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 1.0, "max_sequence_length": 8}
    generator = torch.Generator().manual_seed(0)
    stock = pipe("one", generator=generator, callback_on_step_end=own["gate"], **call).images[0]
    assert (np.asarray(stock) == noted).all()


def test_the_anchor_of_a_climbing_run_may_be_an_adapter(new_run, model, data, teacher, tmp_path, capsys):
    block = {**ADJOINT, "anchor": str(teacher), "anchor_weight": 0.5}
    folder = train(new_run("anchored", **DRAWN, method={"adjoint_matching": block}), progress=False).output_dir
    assert all(line["anchor_adapter_anchor_loss"] > 0 for line in history(folder) if "loss" in line)
    lost = {**DRAWN, "method": {"adjoint_matching": {**block, "anchor": str(tmp_path / "nowhere")}}}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(document(model, data, tmp_path / "out", **lost)), encoding="utf-8")
    assert main(["check", str(file)]) == 2
    assert re.search(r"\$\.method\.adjoint_matching: .*nowhere: no such file or folder", capsys.readouterr().err)
