"""A run leaves a page: at every validation, at its end, however it ends, and not where it is turned off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from flowhooks.cli import main
from flowhooks.errors import TrainingError
from flowhooks.kernel import Hook
from flowhooks.report import Journal, write
from flowhooks.report.journal import read_events
from flowhooks.sampling.labels import read_cells
from flowhooks.train import train
from tests.train.runs import FLOW_DPO, history

LOOK = {"prompts": ["a photo of /home/me/one.png", "two"], "num_inference_steps": [1, 2], "height": 16, "width": 16}


class Breaks(Hook):
    """Gives a loss of NaN in the second step."""

    type = "breaks"

    def penalty(self, step):
        loss = step.predict("main").mean()
        return {"breaks": loss * (float("nan") if step.draws.micro_step else 1.0)}


def events(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_page_with_all_that_it_logged_warned_of_and_drew(new_run, monkeypatch):
    written = []
    real = write.write_page

    def counted(found, file):
        written.append(found[0][0].last)
        return real(found, file)

    monkeypatch.setattr(write, "write_page", counted)
    run = new_run(training={"max_train_steps": 2, "log_every_steps": 1}, validation={**LOOK, "every_steps": 1})
    folder = train(run, progress=False).output_dir
    assert len(written) == 4 and written[-1] == 2, "before the first step, after each, and at the end"
    page = (folder / "report.html").read_text(encoding="utf-8")
    logged = {name for line in history(folder) for name, value in line.items() if value is not None}
    assert len(logged) >= 30
    assert [name for name in logged - {"step", "epoch"} if f'"metric":"{name}"' not in page] == []
    for words in ("finished", "a photo of one.png", "win: 6 images", "training.log_every_steps", "device: cpu"):
        assert words in page
    assert str(folder.parent) not in page and "/home/me" not in page
    told = events(folder)
    assert [each["event"] for each in told if each["event"] != "warning"] == ["start", *["memory"] * 3, "end", "memory"]
    assert (
        told[0]["health"] == {"flow_dpo_implicit_accuracy": "implicit accuracy"} and told[0]["counts"]["samples"] == 6
    )
    assert all(each["bytes"]["process"] > 10**7 for each in told if each["event"] == "memory")
    with Image.open(folder / "validation/step_000002.png") as grid:
        cells = read_cells(grid)
    assert [(cell.prompt, cell.seed, cell.steps) for cell in cells] == [
        ("a photo of one.png", 0, 1), ("a photo of one.png", 0, 2), ("two", 0, 1), ("two", 0, 2),
    ]  # fmt: skip


def test_a_run_that_fails_says_why_and_no_page_is_written_where_it_is_turned_off(new_run):
    run = new_run(
        hooks=[*FLOW_DPO, {"type": f"{__name__}:Breaks"}],
        training={"max_train_steps": 4, "log_every_steps": 1},
        logging={"trackers": [], "report": False},
    )
    with pytest.raises(TrainingError):
        train(run, progress=False)
    folder = Path(run.output_dir)
    assert not (folder / "report.html").exists()
    assert [each["event"] for each in events(folder)][-2:] == ["stopped", "memory"]
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "This run stopped at step 2 of 4: the loss of micro-step 1 is NaN or infinite" in page


def test_a_page_that_cannot_be_written_ends_no_run(new_run, monkeypatch, capsys):
    def fails(found, file):
        raise RuntimeError("too much ink")

    monkeypatch.setattr(write, "write_page", fails)
    folder = train(new_run(training={"max_train_steps": 1}), progress=False).output_dir
    said = "warning: report.html could not be written (RuntimeError: too much ink); training goes on"
    assert said in capsys.readouterr().err
    assert (folder / "metrics.json").is_file() and not (folder / "report.html").exists()


def test_a_resumed_run_keeps_the_events_of_the_steps_that_it_does_not_take_again(tmp_path):
    journal = Journal(tmp_path, 0)
    for step, event in ((0, "start"), (2, "warning"), (4, "warning"), (5, "stopped")):
        journal.append(step, event, text=str(step))
    with journal.file.open("ab") as stream:
        stream.write(b'{"step": 1, "eve\xff')
    Journal(tmp_path, 4).append(4, "start", text="again")
    assert [(each["step"], each["text"]) for each in events(tmp_path)] == [
        (0, "0"), (2, "2"), (4, "4"), (4, "again"),
    ]  # fmt: skip
    found = read_events(tmp_path)
    assert found.stopped is None and not found.ended and len(found.warnings) == 2
    Journal(tmp_path, 0)
    assert events(tmp_path) == []
