"""One run, one folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import psutil
import pytest

from flowhooks.errors import ConfigError, FlowhooksWarning
from flowhooks.train.lock import LOCK, locked


def holder(**changed) -> str:
    own = {"host": socket.gethostname(), "pid": os.getpid(), "start": psutil.Process().create_time()}
    return json.dumps({**own, **changed})


def test_a_folder_is_held_inside_the_block_and_free_after_it(tmp_path):
    folder = tmp_path / "runs" / "one"
    with locked(folder):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
        with (
            pytest.raises(ConfigError, match=rf"process {os.getpid()} on .*choose another `output_dir`"),
            locked(folder),
        ):
            raise AssertionError("two runs in one folder")
        assert (folder / LOCK).is_file()
    assert list(folder.iterdir()) == []


def test_an_error_frees_the_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("changed", [{"start": 1.0}, {"pid": 2**31 - 1}], ids=["another process by now", "nobody"])
def test_what_a_killed_run_left_is_told_and_taken(tmp_path, changed):
    (tmp_path / LOCK).write_text(holder(**changed))
    with pytest.warns(FlowhooksWarning, match="no longer there"), locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_run_that_was_really_killed(tmp_path):
    script = (
        "import os, signal, sys; from pathlib import Path; from flowhooks.train.lock import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -9
    assert (tmp_path / LOCK).is_file()
    with pytest.warns(FlowhooksWarning, match="no longer there"), locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", holder(host="another"), holder(pid="x"), "[" * 100000],
    ids=["empty", "a list", "cut short", "another host", "no number", "deep"],
)
def test_of_what_is_not_known_nothing_is_taken(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(ConfigError, match=f"remove {LOCK}|remove that file"), locked(tmp_path):
        raise AssertionError("taken")
    assert (tmp_path / LOCK).read_text() == text
