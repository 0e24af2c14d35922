"""Mistakes that can be told before weights load: one clear line, exit code 2, and nothing of the user's changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowhooks.checks import machine
from tests.acceptance.mistakes import MISTAKES, SECRET
from tests.acceptance.user import Outcome, User, assert_one_error

ROOT = Path(__file__).parents[2]
# Runs many commands in one interpreter that has not imported torch, and says after each whether it still has not.
SCRIPT = """
import contextlib, io, json, sys
from flowhooks.cli import main
ended = []
for argv in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    ended.append([code, out.getvalue(), err.getvalue(), "torch" in sys.modules])
json.dump(ended, sys.stdout)
"""


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine.cuda_capabilities.cache_clear()
    yield
    machine.cuda_capabilities.cache_clear()


@pytest.fixture(scope="module")
def checked(template, tmp_path_factory):
    """Name of a mistake -> how `check` and `sample` ended on it, whether torch was imported, the user's files before
    and after."""
    users, before, commands = {}, {}, []
    for name, mistake in {"nothing": None, **MISTAKES}.items():
        folder = tmp_path_factory.mktemp("user")
        shutil.copytree(template, folder / "mine")
        users[name] = User(folder)
        if mistake is not None:
            mistake.make(users[name])
        before[name] = users[name].state()
        commands.append(["check", str(users[name].run)])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, input=json.dumps(commands), capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return {
        name: (Outcome(code=code, out=out, err=err), torch, before[name], users[name])
        for name, (code, out, err, torch) in zip(users, json.loads(done.stdout), strict=True)
    }


def test_the_folder_without_a_mistake_is_fine(checked):
    found, torch, before, user = checked["nothing"]
    assert (found.code, found.err, torch) == (0, "", False) and found.out.endswith("ok\n")
    assert user.state() == before


@pytest.mark.parametrize("name", MISTAKES)
def test_check_tells_it_without_torch(checked, name):
    found, torch, before, user = checked[name]
    assert_one_error(found, 2, MISTAKES[name].words)
    assert found.out == "" and len(found.err.splitlines()) == 1, "one mistake is one line"
    assert not torch and SECRET not in found.err
    assert user.state() == before
    assert not user.out.exists() and not user.cache.exists()


@pytest.mark.parametrize("name", MISTAKES)
def test_train_tells_it_before_weights_load(user, loads, name):
    MISTAKES[name].make(user)
    before = user.state()
    found = user.train()
    assert_one_error(found, 2, MISTAKES[name].words)
    assert found.out == "" and SECRET not in found.err
    assert loads == []
    assert user.state() == before
    assert not user.out.exists() and not user.cache.exists()


@pytest.mark.parametrize(
    "lora, words",
    [
        ("flux.safetensors", ("flux.safetensors: ", "made for another model", "use the base model it was trained on")),
        ("wide.safetensors", ("wide.safetensors: ", "made for another model", "use the base model it was trained on")),
        ("data/win/one.png", ("one.png: expected a .safetensors file",)),
        ("half.safetensors", ("half.safetensors: cannot be read as safetensors", "copy or download it again")),
        ("nowhere", ("nowhere: no such file or folder", "Give a folder that an adapter was saved in")),
    ],
)
def test_sample_refuses_a_lora_before_weights_load(user, loads, lora, words):
    (user.mine / "half.safetensors").write_bytes((user.mine / "own.safetensors").read_bytes()[:9000])
    before, pictures = user.state(), user.folder / "pictures"
    found = user.command(
        "sample", str(user.mine / "model"), "--prompt", "a", "--lora", str(user.mine / lora), "--output", str(pictures)
    )
    assert_one_error(found, 2, words)
    assert loads == [] and user.state() == before and not pictures.exists()


def test_several_mistakes_are_told_at_once(user):
    for name in ("a corrupt PNG", "a text named .png", "a mask of another aspect"):
        MISTAKES[name].make(user)
    user.write(model={"attention_backend": "flash"})
    found = user.command("check", str(user.run))
    assert found.code == 2
    for words in ("two.png is", "five.png is not a PNG", "32x16", "'flash' cannot be used"):
        assert words in found.err


def test_the_real_program_says_the_same(user):
    MISTAKES["a text named .png"].make(user)
    before = user.state()
    command = [sys.executable, "-m", "flowhooks", "check", str(user.run)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    found = Outcome(code=done.returncode, out=done.stdout, err=done.stderr)
    assert_one_error(found, 2, MISTAKES["a text named .png"].words)
    assert user.state() == before
