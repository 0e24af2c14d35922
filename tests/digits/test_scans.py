"""The image folders: deterministic, paired, and masks that tell the truth."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flowhooks.digits.scans import FOLDERS, PIXELS, WORDS, blot_opacity, load_scans, resolve_data, spill, write_data
from flowhooks.errors import DataError
from flowhooks.files import home, place, whole

COUNT = 60


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_data(folder, limit=COUNT)
    return folder


def read(folder, name, index):
    return np.asarray(Image.open(folder / name / f"{index:04d}.png"))


def test_every_scan_has_its_four_pictures_and_captions(written):
    names = {f"{index:04d}" for index in range(COUNT)}
    digits = load_scans()[1]
    for folder in FOLDERS:
        assert {file.stem for file in (written / folder).glob("*.png")} == names
    for folder in ("preferred", "base"):
        for index in range(COUNT):
            words = (written / folder / f"{index:04d}.txt").read_text().strip()
            assert words == f"a handwritten {WORDS[digits[index]]}"


def test_a_mask_is_white_exactly_where_the_pair_differs(written):
    for index in range(COUNT):
        clean, blotted, mask = (read(written, each, index) for each in ("preferred", "rejected", "mask"))
        assert clean.shape == blotted.shape == (PIXELS, PIXELS, 3)
        assert mask.shape == (PIXELS, PIXELS)
        assert set(np.unique(mask)) == {0, 255}
        assert np.array_equal(mask == 255, (clean != blotted).any(axis=2))


def test_blots_are_visible_and_leave_most_of_the_digit(written):
    shares = [(read(written, "mask", index) == 255).mean() for index in range(COUNT)]
    assert min(shares) > 0.02
    assert max(shares) < 0.25


def test_base_pictures_are_the_clean_or_the_blotted_ones_about_half_and_half(written):
    blotted = 0
    for index in range(COUNT):
        base, clean, spoilt = (read(written, each, index) for each in ("base", "preferred", "rejected"))
        blotted += np.array_equal(base, spoilt)
        assert np.array_equal(base, spoilt) or np.array_equal(base, clean)
    assert 0.3 * COUNT < blotted < 0.7 * COUNT


def test_files_are_the_same_every_time_and_do_not_depend_on_how_many(written, tmp_path):
    write_data(tmp_path, limit=20)
    for folder in FOLDERS:
        for index in range(20):
            name = f"{folder}/{index:04d}.png"
            assert (tmp_path / name).read_bytes() == (written / name).read_bytes()


def test_ink_changes_nothing_where_its_opacity_is_zero():
    opacity = blot_opacity(np.random.default_rng(3), 32)
    paper = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    spilled = spill(paper, opacity)
    assert opacity.min() == 0
    assert opacity.max() == 1
    assert np.array_equal(spilled[opacity == 0], paper[opacity == 0])


def test_names_of_folders_resolve_and_others_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("flowhooks.digits.scans.ensure_data", lambda: tmp_path)
    assert resolve_data("digits:mask") == tmp_path / "mask"
    with pytest.raises(DataError, match="digits:preferred"):
        resolve_data("digits:perfect")


def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("FLOWHOOKS_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("FLOWHOOKS_HOME")
    assert home().parts[-2:] == (".cache", "flowhooks")


def test_a_changed_recipe_gets_another_folder():
    assert place("data", {"seed": 0}) != place("data", {"seed": 1})


def test_a_writer_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), whole(tmp_path / "data") as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_writers_gives_way(tmp_path):
    with whole(tmp_path / "data") as slow:
        (slow / "slow").touch()
        with whole(tmp_path / "data") as fast:
            (fast / "fast").touch()
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["fast"]
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


def test_writing_data_needs_no_torch():
    code = "import sys, flowhooks.digits.scans as s; s.load_scans(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
