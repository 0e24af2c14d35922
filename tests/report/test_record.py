"""What is read of a run's folder, and what its page says of one that is not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flowhooks.cli import main
from flowhooks.errors import ConfigError
from flowhooks.report.metrics_file import MetricsFile
from flowhooks.report.record import read_record
from flowhooks.report.settings import differing, settings
from tests.report.folders import start, write_events, write_finished, write_metrics, write_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_finished(tmp_path_factory.mktemp("whole") / "run", steps=20)


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def no_events(run: Path) -> None:
    (run / "events.jsonl").unlink()


def unfinished(run: Path) -> None:
    write_metrics(run, range(1, 13), 20)
    write_events(run, [start()])


def stopped(run: Path) -> None:
    write_events(run, [start(), {"step": 12, "event": "stopped", "text": "the loss of micro-step 12 is NaN"}])


def nothing_logged(run: Path) -> None:
    (run / "metrics.jsonl").write_bytes(b"")
    write_events(run, [start()])


def no_validation(run: Path) -> None:
    shutil.rmtree(run / "validation")
    write_run(run, steps=20, validation={"prompts": []})


def nan(run: Path) -> None:
    replaced(run / "metrics.jsonl", '"flow_dpo_margin": ', '"flow_dpo_margin": NaN, "more": ')


def lost_loss(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[4]["loss"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def cut(run: Path) -> None:
    text = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(text[:-40])


def damaged_line(run: Path) -> None:
    replaced(run / "metrics.jsonl", '{"step": 3,', '{"step": 3;')


def no_settings(run: Path) -> None:
    (run / "run.json").write_text("{", encoding="utf-8")


def cut_grid(run: Path) -> None:
    file = run / "validation/step_000010.png"
    file.write_bytes(file.read_bytes()[:300])


def crowded(run: Path) -> None:
    line = json.dumps({"step": 20, **{f"mine_{i}": 1.0 for i in range(501)}})
    (run / "metrics.jsonl").write_text(f"{line}\n", encoding="utf-8")


def talkative(run: Path) -> None:
    told = [{"step": i, "event": "warning", "text": f"sentence {i}"} for i in range(201)]
    write_events(run, [start(), *told, {"step": 20, "event": "end"}])


def damaged_event(run: Path) -> None:
    with (run / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 20, "event": "warn\n')


def broken_sound(run: Path) -> None:
    (run / "validation/step_000010_prompt_000_00.wav").write_bytes(b"RIFF")


FAULTS = {
    damaged_event: "1 line of events.jsonl cannot be read, so that a warning may be missing",
    broken_sound: "cannot be read: step_000010_prompt_000_00.wav.",
    crowded: "Of its metrics the first 500 are shown",
    talkative: "Of its 201 warnings the first 200 are shown",
    no_events: "A version of flowhooks that wrote no events.jsonl trained this run",
    unfinished: "This run is not finished: step 12 of 20 was logged last",
    stopped: "This run stopped at step 12 of 20: the loss of micro-step 12 is NaN",
    nothing_logged: "This run has logged no step yet",
    no_validation: "This run had no validation",
    nan: "NaN or infinite numbers are left out of the curves: line 1 of metrics.jsonl",
    lost_loss: "`loss` was no finite number at 1 logged step: 5",
    cut: "The last line of metrics.jsonl is cut off",
    damaged_line: "1 line of metrics.jsonl cannot be read and is left out: 3.",
    no_settings: "run.json cannot be read, so its settings are not shown",
    cut_grid: "cannot be read: step_000010.png.",
}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_a_run_that_is_not_whole_has_a_page_that_says_so(run, spoil):
    spoil(run)
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    assert FAULTS[spoil] in text
    assert "What to do next" in text and text.endswith("</html>\n")


def test_a_whole_run_has_no_complaint(run):
    record = read_record(run)
    assert record.notices == () and record.finished and record.last == 20
    assert record.methods == ["flow_dpo", "anchor_regularizer"]


def test_all_faults_at_once(run):
    for spoil in (no_events, nan, damaged_line, cut, no_settings, cut_grid):
        spoil(run)
    assert main(["report", str(run)]) == 0
    assert len(read_record(run).notices) == 5


def test_a_folder_that_is_no_runs_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "gone")]) == 2
    assert "there is no such folder; give the output folder of a run" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run.json and no metrics.jsonl" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        read_record(tmp_path)


def test_metrics_are_read_once_while_the_run_goes_on(tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(file).update()
    assert metrics.lines == 0
    with file.open("a") as stream:
        stream.write('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
        stream.flush()
        assert metrics.update().last == 1 and metrics.cut
        stream.write('ss": 0.5}\n')
        stream.flush()
        assert metrics.update().last == 2 and not metrics.cut
    assert list(metrics.columns["loss"].values) == [1.0, 0.5]
    # A resumed run writes the file anew, without the steps that it takes again.
    file.unlink()
    file.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.25}\n{"step": 3, "loss": null}\n')
    assert metrics.update().lines == 3
    assert list(metrics.columns["loss"].values) == [1.0, 0.25] and list(metrics.columns["loss"].empty) == [3]


def test_settings_show_what_differs_from_the_defaults(run):
    changed = {each.path: (each.value, each.default) for each in settings(read_record(run)) if each.differs}
    assert changed["training.max_train_steps"] == ("20", "1000")
    assert changed["hooks.flow_dpo.auto_beta"] == ("true", "false")
    assert changed["output_dir"] == ('"run"', "null"), "absolute paths are cut to their last part"
    assert "adapter.alpha" not in changed and "training.learning_rate" not in changed


def test_runs_are_compared_by_the_keys_that_differ(run, tmp_path):
    training = {"max_train_steps": 20, "train_batch_size": 16, "learning_rate": 3e-4}
    other = write_run(tmp_path / "other", steps=20, training=training, adapter={"type": "lora", "rank": 8})
    rows = dict(differing([read_record(run), read_record(other)]))
    assert rows.pop("training.learning_rate") == ["0.0001", "0.0003"]
    assert rows == {"adapter.rank": ["16", "8"], "adapter.alpha": ["16", "8"]}
