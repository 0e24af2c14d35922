"""Going on from an older checkpoint, and logs that cannot be written."""

from __future__ import annotations

import errno
import json
import warnings

import pytest
import torch

from flowhooks.errors import ConfigError, FlowhooksWarning, TrainingError
from flowhooks.files import aside_of
from flowhooks.kernel.view import StepResult
from flowhooks.sampling.prompts import read_prompts
from flowhooks.train import train
from flowhooks.train.checkpoint import HISTORY
from flowhooks.train.launch import accelerated
from flowhooks.train.lock import locked
from flowhooks.train.metrics import History, MetricWindow
from tests.train.runs import history


def test_what_came_after_an_older_checkpoint_is_set_aside_and_latest_is_of_the_new_branch(new_run):
    training = {"max_train_steps": 3, "checkpointing_steps": 1, "log_every_steps": 2}
    run = new_run(training=training)
    folder = train(run, progress=False).output_dir
    before = {path.name: (path / "manifest.json").read_bytes() for path in folder.glob("checkpoint-*")}
    lines = (folder / HISTORY).read_text()
    # The first step's logged window holds step 2 alone: what the checkpoint of step 1 knows must not be lost.
    (folder / "validation").mkdir()
    left = [aside_of(folder / "pipeline"), aside_of(folder / "validation" / "step_000001.png")]
    for each in left:
        each.write_bytes(b"half")
    with locked(folder), pytest.raises(ConfigError, match="another run trains here"):
        train(run, resume="latest", progress=False)
    assert all(each.is_file() for each in left)
    with pytest.warns(FlowhooksWarning, match="going on from checkpoint-1; what came after it is in set-aside-"):
        train(run, resume=str(folder / "checkpoint-1"), progress=False)
    assert not any(each.exists() for each in left)
    (aside,) = folder.glob("set-aside-*")
    assert {path.name for path in aside.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    for path in aside.glob("checkpoint-*"):
        assert (path / "manifest.json").read_bytes() == before[path.name]
    assert (aside / HISTORY).read_text() == lines
    again = [{k: v for k, v in line.items() if k != "seconds_per_step"} for line in history(folder)]
    assert again == [
        {k: v for k, v in json.loads(line).items() if k != "seconds_per_step"} for line in lines.splitlines()
    ]
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_last_step_that_is_behind_is_told(new_run):
    run = new_run(training={"max_train_steps": 2, "checkpointing_steps": 1})
    folder = train(run, progress=False).output_dir
    shorter = new_run(training={"max_train_steps": 1, "checkpointing_steps": 1}, output_dir=str(folder))
    with pytest.warns(FlowhooksWarning, match="at step 2, after the last step 1 of this run"):
        assert train(shorter, resume="latest", progress=False).step == 2


def test_a_tracker_that_raises_ends_no_run(new_run, monkeypatch, capsys):
    from accelerate import Accelerator

    def broken(self, values, step=None, **kwargs):
        raise RuntimeError("the server has gone")

    monkeypatch.setattr(Accelerator, "log", broken)
    result = train(new_run(training={"max_train_steps": 2, "log_every_steps": 1}), progress=False)
    said = capsys.readouterr().err
    assert result.step == 2 and said.count("the server has gone") == 1 and "training goes on" in said
    assert [line["step"] for line in history(result.output_dir)][-1] == 2


class Unclosable:
    name = "tensorboard"

    def finish(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_tracker_that_cannot_be_closed_hides_no_other_error(new_run):
    with (
        pytest.warns(FlowhooksWarning, match="'tensorboard' could not be closed .*No space left"),
        pytest.raises(TrainingError, match="^the real one$"),
        accelerated(new_run()) as accelerator,
    ):
        accelerator.trackers = [Unclosable(), Unclosable()]
        raise TrainingError("the real one")
    with pytest.warns(FlowhooksWarning, match="could not be closed"), accelerated(new_run()) as accelerator:
        accelerator.trackers = [Unclosable()]


def test_a_window_is_what_it_was_after_a_resume():
    def result(value: float) -> StepResult:
        return StepResult(loss=torch.tensor(2 * value), metrics={"a": torch.tensor(value)}, passes=1, share=2.0)

    whole, first, second = (MetricWindow(4, 8) for _ in range(3))
    for value in (1.0, 5.0):
        whole.add(result(value))
    first.add(result(1.0))
    second.load_state_dict(first.state_dict())
    second.add(result(5.0))
    one, other = whole.fetch(), second.fetch()
    assert one.pop("seconds_per_step") >= 0 and other.pop("seconds_per_step") >= 0
    assert one == other == {"loss": 3.0, "a": 3.0}


def test_lines_that_cannot_be_read_stand_in_no_way(tmp_path):
    good = json.dumps({"step": 1, "loss": 0.5}).encode()
    (tmp_path / HISTORY).write_bytes(b"\n".join([good, b"\xff\xfe{", b"[]", b'{"step": 1e999}', b"[" * 50000, b""]))
    kept = History(tmp_path, 3)
    kept.append(4, {"loss": 1.0})
    assert [json.loads(line)["step"] for line in (tmp_path / HISTORY).read_text().splitlines()] == [1, 4]


def test_a_json_file_of_prompts_is_a_list_of_them(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(["one", {"prompt": "two", "task": "b"}]))
    assert [(p.text, dict(p.record)) for p in read_prompts(str(file))] == [("one", {}), ("two", {"task": "b"})]
    for text in ('{"prompt": "one"}', "[]", "one\ntwo", "[" * 100000):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"prompts.json"):
            read_prompts(str(file))


def test_nothing_is_warned_of_a_run_that_goes_on(new_run):
    run = new_run(training={"max_train_steps": 2, "checkpointing_steps": 1})
    train(run, progress=False)
    longer = new_run(training={"max_train_steps": 3, "checkpointing_steps": 1}, output_dir=run.output_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlowhooksWarning)
        assert train(longer, resume="latest", progress=False).step == 3


def test_prompts_and_base_weights_that_changed_are_noticed(tmp_path):
    from types import SimpleNamespace

    from safetensors.torch import save_file

    from flowhooks.train.identity import changes, identity

    prompts, model = tmp_path / "prompts.txt", tmp_path / "model"
    (model / "transformer").mkdir(parents=True)
    prompts.write_text("one\n")
    save_file({"a": torch.zeros(4)}, model / "transformer" / "weights.safetensors")
    hook = SimpleNamespace(type="on_policy_rollout", options={"prompts": str(prompts)})
    run = SimpleNamespace(
        model={"pretrained_model_name_or_path": str(model)},
        adapter=None,
        hooks=(hook,),
        training={},
        validation={"holdout": 0},
    )

    def now() -> dict:
        return identity(run, SimpleNamespace(records=()), 1)

    before = now()
    assert changes(before, now()) == []
    prompts.write_text("two\n")
    (said,) = changes(before, now())
    assert "file of `prompts` has changed" in said
    save_file({"a": torch.ones(4)}, model / "transformer" / "weights.safetensors")
    assert len(changes(before, now())) == 2
    # What an older version wrote says nothing of either.
    assert changes({key: before[key] for key in before if key not in ("prompts", "weights")}, now()) == []


def test_the_page_about_checkpoints_has_every_warning_of_what_changed():
    from flowhooks.train.identity import _CHANGES
    from tests.docs.pages import ROOT

    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    assert [sentence for sentence in _CHANGES.values() if sentence not in page] == []
