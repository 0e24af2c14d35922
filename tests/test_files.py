"""Files for the user: whole or not there, with the permissions that the umask asks for."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import flowhooks
from flowhooks.adapters import build_adapter
from flowhooks.adapters.names import LORA_FILE
from flowhooks.export.dialects import export_lora
from flowhooks.files import aside_of, share, sweep, write_aside
from flowhooks.modules_file import save_modules
from flowhooks.train.checkpoint import Checkpoints
from flowhooks.train.outputs import _save_pipeline
from tests.adapters.helpers import section
from tests.families import learnt, tiny


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {each.name: stat.S_IMODE(each.stat().st_mode) for each in folder.rglob("*") if each.is_file()}


def test_what_a_run_writes_is_as_readable_as_any_new_file(umask, tmp_path):
    model = learnt("sd3")
    lora = {"type": "lora", "rank": 2, "alpha": 2}
    with flowhooks.attach(model, {"adapter": lora, "hooks": [{"type": "time_conditioning"}]}) as session:
        with torch.no_grad():
            for parameter in session.parameters().values():
                parameter.add_(0.01)
        session.adapter.save(tmp_path, {})
        save_modules(tmp_path, session.assembly, model, {})
        Checkpoints(tmp_path).save(1, {"parameters": session.parameters()}, {}, {"data": ""})
    export_lora(tmp_path / LORA_FILE, "comfyui", None)
    found = modes(tmp_path)
    assert len(found) == 6 and set(found.values()) == {0o666 & ~umask}


def test_kinds_with_two_files_and_whole_pipelines(tmp_path):
    loha = build_adapter(tiny("sd3").transformer, section("loha"))
    loha.save(tmp_path / "loha", {})
    _save_pipeline(tiny("sd3"), tmp_path / "pipeline")
    new = tmp_path / "new"
    new.touch()
    assert set(modes(tmp_path).values()) == {stat.S_IMODE(new.stat().st_mode)}


def test_a_file_that_could_not_be_written_is_as_it_was(tmp_path):
    file = tmp_path / "kept.txt"
    file.write_text("kept")

    def fail(aside):
        aside.write_text("half")
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write_aside(file, fail)
    assert file.read_text() == "kept" and os.listdir(tmp_path) == ["kept.txt"]


def test_the_library_s_own_files_would_not_be(tmp_path):
    """Why this is needed; when it fails, safetensors has changed."""
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    before = modes(tmp_path)["a.safetensors"]
    share(tmp_path / "a.safetensors")
    (tmp_path / "new").touch()
    assert modes(tmp_path)["a.safetensors"] == modes(tmp_path)["new"] != before


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from flowhooks.files import write_aside\n"
        "write_aside(Path(sys.argv[1]), lambda aside: (aside.write_text('half'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run.json")])
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.read_text() == "half" and left.name.startswith(".run.json.") and left.name.endswith(".new")
    for folder in (aside_of(tmp_path / "pipeline"), tmp_path / ".pipeline.0a1b2c3d.new"):
        (folder / "transformer").mkdir(parents=True)
        (folder / "transformer" / "weights").touch()
    mark = "0123456789abcdef" * 2
    others = {
        "run.json",
        ".new",
        ".mine.new",
        f".pipeline.{mark}.old",
        f"pipeline.{mark}.new",
        f".a.{mark}",
        ".b.XYZ.new",
    }
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / f".c.{mark}.new").symlink_to(tmp_path / "run.json")
    sweep(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {*others, f".c.{mark}.new"}
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    sweep(tmp_path / "nowhere")


def test_a_pipeline_whose_replacement_is_interrupted_is_as_it_was(tmp_path, monkeypatch):
    target = tmp_path / "pipeline"
    target.mkdir()
    (target / "kept").touch()

    class Pipe:
        scheduler = None

        def save_pretrained(self, folder, **_):
            folder.mkdir()

    rename = type(target).rename

    def interrupted(path, to):
        if path.suffix == ".new":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(type(target), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _save_pipeline(Pipe(), target)
    assert [each.name for each in tmp_path.rglob("*")] == ["pipeline", "kept"]
