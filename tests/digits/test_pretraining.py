"""The embedded pipeline is pretrained by the trainer in a process of its own, whoever asks for it."""

from __future__ import annotations

import json

import pytest

from flowhooks.digits import model
from flowhooks.digits.pipeline import read_pixels
from flowhooks.digits.scans import write_data
from flowhooks.errors import ModelError

pytestmark = pytest.mark.slow


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The run that pretrains, on eight scans and for one step."""
    scans, start = tmp_path / "scans", tmp_path / "start"
    write_data(scans, limit=8)
    model.build(start, read_pixels(scans / "preferred"), steps=1, progress=False)
    run = json.loads(model.example("sft/digits.json").read_text(encoding="utf-8"))
    run["data"] = [{"id": "base", "instance_data_dir": str(scans / "preferred")}]
    run["training"] |= {"max_train_steps": 1, "train_batch_size": 2, "lr_warmup_steps": 0}
    file = tmp_path / "run.json"
    file.write_text(json.dumps(run), encoding="utf-8")
    monkeypatch.setattr(model, "example", lambda name: file)
    monkeypatch.setattr(model, "ensure_untrained", lambda progress=None: start)
    monkeypatch.setenv("FLOWHOOKS_HOME", str(tmp_path / "home"))
    return file


def test_it_is_a_pipeline_and_nothing_else_is_left(source, tmp_path, monkeypatch, capfd):
    # As one of two processes of a launch, whose other one it must not wait for.
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    folder = model.ensure_model(progress=False)
    assert (folder / "model_index.json").is_file()
    assert not (folder / "training").exists() and not (folder / "cache").exists()
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]
    assert capfd.readouterr().out == ""
    assert model.ensure_model(progress=False) == folder


def test_a_pretraining_that_fails_is_told_and_leaves_nothing(source, tmp_path, capfd):
    source.write_text(source.read_text(encoding="utf-8").replace('"sft"', '"stf"'), encoding="utf-8")
    with pytest.raises(ModelError, match="could not be pretrained"):
        model.ensure_model(progress=False)
    assert "did you mean" in capfd.readouterr().err
    assert list((tmp_path / "home" / "digits").iterdir()) == []
