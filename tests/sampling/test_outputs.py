"""`flowhooks sample` writes over no picture that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowhooks.errors import ConfigError
from flowhooks.sampling.outputs import free_output


@pytest.mark.parametrize("name", ["grid.png", "prompt_000_00.png", "prompt_003_01_steps_4_base.png"])
def test_a_folder_with_pictures_of_an_earlier_call_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(ConfigError, match=f"{name}: exists already and is not overwritten; choose another --output"):
        free_output(str(tmp_path))


def test_a_new_folder_and_one_with_other_files_are_taken(tmp_path):
    (tmp_path / "p0.png").write_bytes(b"mine")
    assert free_output(str(tmp_path)) == tmp_path
    assert free_output(str(tmp_path / "new")) == tmp_path / "new"
    assert free_output(str(tmp_path / "new.png")) == tmp_path / "new.png"


def test_a_picture_by_its_name_and_a_file_in_place_of_a_folder_are_refused(tmp_path):
    for name in ("p0.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(ConfigError, match="exists already"):
            free_output(str(tmp_path / name))


def test_without_a_name_the_next_free_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert free_output(None) == Path("samples")
    for taken in ("samples", "samples-2"):
        Path(taken).mkdir()
        Path(taken, "grid.png").write_bytes(b"mine")
    assert free_output(None) == Path("samples-3")
