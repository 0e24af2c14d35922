"""The program as it is called: exit codes, streams, and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.folders import make_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "lycoris", "datasets")


def flowhooks(*argv: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flowhooks", *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, **options)


def imported(code: str) -> set[str]:
    """Heavy packages that are loaded after ``code`` has run in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    report = f"{code}\nimport sys\nprint('loaded', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_help():
    done = flowhooks("--help")
    assert done.returncode == 0 and "check" in done.stdout and done.stderr == ""


def test_help_imports_nothing_heavy():
    code = "from flowhooks.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert imported(code) == set()


@pytest.mark.parametrize("command", ["check", "explain"])
def test_check_and_explain_import_nothing_heavy(tmp_path, command):
    run = make_run(tmp_path)
    assert imported(f"from flowhooks.cli import main\nassert main([{command!r}, {str(run)!r}]) == 0") == set()


def test_exit_codes_and_streams(tmp_path):
    run = make_run(tmp_path)
    good = flowhooks("check", str(run))
    assert (good.returncode, good.stderr) == (0, "") and good.stdout.endswith("ok\n")
    bad = flowhooks("check", str(run), "--set", "training.sed=1")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "--set: $.training.sed: unknown key 'sed'; did you mean 'seed'?\n"
    assert flowhooks("check").returncode == 2
    assert flowhooks("check", "nowhere.json").returncode == 2


def test_train_refuses_a_wrong_run_before_it_imports_torch(tmp_path):
    run = make_run(tmp_path, hooks=[{"type": "flow_dpo"}, {"type": "flow_dpo", "beta": 2}])
    code = f"from flowhooks.cli import main\nassert main(['train', {str(run)!r}]) == 2"
    assert imported(code) == set()
    assert not (tmp_path / "out").exists()


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    reading, writing = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flowhooks", "schema", "run"]
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment) as process:
        os.close(writing)
        os.close(reading)
        assert process.stderr is not None
        assert process.stderr.read() == ""
