"""Which output folders a run takes: new, empty, with what is not in its way, or its own; and where it goes on from."""

from __future__ import annotations

import json

import pytest

from flowhooks.checks.output import output_problems
from flowhooks.config import load_run, resolve_run


def run_in(tmp_path, output=None, **sections):
    document = {"hooks": [], "output_dir": str(output or tmp_path / "out"), **sections}
    file = tmp_path / "mine" / "my.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(document), encoding="utf-8")
    return load_run(file)


def told(run, resume=None):
    return [str(problem) for problem in output_problems(run, resume)]


def put(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")


def test_unrelated_files_and_those_of_a_run_that_came_to_nothing_are_in_nobodys_way(tmp_path):
    run, out = run_in(tmp_path), tmp_path / "out"
    assert told(run) == []
    put(out, notes_txt="mine", metrics_jsonl="", run_json=json.dumps(run.document))
    assert told(run) == []


def test_a_runs_own_files_are_known_when_it_goes_on(tmp_path):
    run, out = run_in(tmp_path), tmp_path / "out"
    (out / "checkpoint-4").mkdir(parents=True)
    metrics = json.dumps({"loss": 1.0, "learning_rate": 1e-3, "epoch": 0.5})
    card = "# out\n\nTrained with flowhooks from `x`; hooks: `sft`.\n"
    put(out, run_json=json.dumps(run.document), metrics_json=metrics, README_md=card)
    put(out, metrics_jsonl='{"step": 1, "loss": 1.0}\n')
    assert told(run, "latest") == told(run, str(out / "checkpoint-4")) == []


@pytest.mark.parametrize(
    "name", ["run.json", "README.md", "metrics.json", "metrics.jsonl", "events.jsonl", "report.html"]
)
def test_a_file_that_is_no_text_is_the_users(tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"\xff\xfe\x00")
    assert any(f"holds a {name} that no run wrote" in line for line in told(run_in(tmp_path)))


def test_the_run_file_that_a_run_wrote_may_be_trained_where_it_lies(tmp_path):
    document = run_in(tmp_path).document
    put(tmp_path / "out", run_json=json.dumps(document))
    assert told(load_run(tmp_path / "out" / "run.json")) == []


def test_a_run_file_beside_what_it_would_write_is_refused(tmp_path):
    (line,) = told(run_in(tmp_path, tmp_path / "mine"))
    assert "$.output_dir: is the folder of the run file my.json" in line


def test_a_branch_does_not_go_into_the_folder_of_another_run(tmp_path):
    (tmp_path / "out" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "other" / "checkpoint-2").mkdir(parents=True)
    (line,) = told(run_in(tmp_path), str(tmp_path / "other" / "checkpoint-2"))
    assert "holds checkpoint-2 of an earlier run" in line


def test_a_runs_folder_is_no_checkpoint(tmp_path):
    for step in (4, 30):
        (tmp_path / "out" / f"checkpoint-{step}").mkdir(parents=True)
    (line,) = told(run_in(tmp_path), str(tmp_path / "out"))
    assert f"name {tmp_path / 'out' / 'checkpoint-30'}, or `latest`" in line


def test_a_hidden_folder_among_the_data_is_not_looked_at(tmp_path):
    data = tmp_path / "pictures"
    data.mkdir()
    blocks = [{"id": "a", "instance_data_dir": str(data), "caption_strategy": "filename"}]

    def found(place):
        document = {"hooks": [], "data": {"datasets": blocks}, "output_dir": str(place), "cache_dir": str(place)}
        return told(resolve_run(document, tmp_path / "run.json"))

    assert found(data / ".runs") == found(tmp_path / "runs") == []
    (tmp_path / "link").symlink_to(data)
    assert len(found(data / "runs")) == len(found(tmp_path / "link" / "runs")) == 2
