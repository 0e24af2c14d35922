"""`flowhooks pairs make` on real folders."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flowhooks.cli import main
from flowhooks.config import load_datasets
from flowhooks.data import audit
from flowhooks.train import train
from tests.cli.test_process import imported
from tests.data.folders import image_set, load, snapshot, undecodable, write_image, write_mask, write_pairs
from tests.data.sources.kept import KEEPERS, samples
from tests.train.runs import make_run, write_model

NAMES = ("a", "b", "sub/c", "sub/d", "e", "f")
ALL_KINDS = ["--degrade", "blur", "--degrade", "jpeg", "--degrade", "blots", "--degrade", "noise"]


@pytest.fixture
def photos(tmp_path):
    write_pairs(tmp_path / "data", NAMES, (24, 16))
    return tmp_path / "data" / "win"


def make(source, output, *options: str) -> int:
    options = options or ("--degrade", "blots:2")
    return main(["pairs", "make", str(source), "--output", str(output), "--no-progress", *options])


def relative(folder) -> dict[str, bytes | None]:
    return {path.relative_to(folder).as_posix(): content for path, content in snapshot(folder).items()}


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_twins_masks_captions_and_a_data_set_file(photos, tmp_path, capsys):
    before = snapshot(tmp_path)
    assert make(photos, tmp_path / "made", *ALL_KINDS, "--seed", "1") == 0
    made = tmp_path / "made"
    assert capsys.readouterr().out.splitlines()[-1] == f"use        {made}/dataset.json as `data` of a run"
    assert {path: content for path, content in snapshot(tmp_path).items() if made not in path.parents} == before
    assert relative(made / "preferred") == {
        name: content + b"\n" if name.endswith(".txt") else content for name, content in relative(photos).items()
    }
    with (made / "pairs.csv").open(newline="") as file:
        kinds = {row["pair"]: row["degradations"] for row in csv.DictReader(file)}
    assert kinds.keys() == set(NAMES) and len(set(kinds.values())) > 2
    for name, kind in kinds.items():
        good, worse = pixels(photos / f"{name}.png"), pixels(made / "rejected" / f"{name}.png")
        white = pixels(made / "mask" / f"{name}.png")[..., 0] == 255
        assert (good[~white] == worse[~white]).all() and (good[white] != worse[white]).any()
        assert white.all() == (kind in ("blur:2", "jpeg:10"))
    found = audit(load_datasets("dataset.json", made))
    assert found.counts == {"samples": 6, "images": 6, "rejected": 6, "masks": 6, "captions": 6}
    assert found.warnings == ()


def test_made_pairs_train(photos, tmp_path):
    assert make(photos, tmp_path / "made", "--degrade", "noise", "--set", "resolution=16") == 0
    run = make_run(write_model(tmp_path / "model"), tmp_path / "made/dataset.json", tmp_path / "out")
    assert run.data.blocks[0]["resolution"] == 16
    assert main(["check", _saved(run.document, tmp_path / "run.json")]) == 0
    assert train(run, progress=False).step == 4


def _saved(document, file) -> str:
    file.write_text(json.dumps(document), encoding="utf-8")
    return str(file)


def test_a_seed_and_a_name_give_the_same_bytes(photos, tmp_path):
    for name in ("one", "two"):
        assert make(photos, tmp_path / name, *ALL_KINDS) == 0
    first = relative(tmp_path / "one")
    assert relative(tmp_path / "two") == first
    assert make(photos, tmp_path / "other", *ALL_KINDS, "--seed", "1") == 0
    assert relative(tmp_path / "other") != first
    for each in ("a", "e"):
        (photos / f"{each}.png").unlink()
    assert make(photos, tmp_path / "fewer", *ALL_KINDS) == 0
    twins = relative(tmp_path / "fewer" / "rejected")
    assert twins == {name: first[f"rejected/{name}"] for name in twins} and len(twins) == 4


def test_an_upright_twin_of_a_turned_transparent_or_grey_image(tmp_path):
    write_image(tmp_path / "in/turned.png", (24, 16), exif=_turned())
    rgba = np.random.default_rng(3).integers(0, 256, (24, 16, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "in/clear.png")
    Image.fromarray(np.full((24, 16), 40_000, dtype=np.uint16)).save(tmp_path / "in/deep.png")
    assert make(tmp_path / "in", tmp_path / "made", "--degrade", "noise", "--set", "caption_strategy=filename") == 0
    for name in ("turned", "clear", "deep"):
        assert pixels(tmp_path / f"made/rejected/{name}.png").shape == (24, 16, 3)
    on_white = Image.alpha_composite(Image.new("RGBA", (16, 24), "white"), Image.fromarray(rgba)).convert("RGB")
    untouched = pixels(tmp_path / "made/mask/clear.png")[..., 0] == 0
    assert (pixels(tmp_path / "made/rejected/clear.png")[untouched] == np.asarray(on_white)[untouched]).all()
    assert (tmp_path / "made/preferred/deep.txt").read_text() == "deep\n"


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_within_keeps_to_the_white_of_masks(photos, tmp_path):
    masks = photos.parent / "mask"
    assert make(photos, tmp_path / "made", *ALL_KINDS, "--all", "--within", str(masks)) == 0
    for name in NAMES:
        good, worse = pixels(photos / f"{name}.png"), pixels(tmp_path / "made/rejected" / f"{name}.png")
        assert (good[:, 12:] == worse[:, 12:]).all() and (good[:, :12] != worse[:, :12]).any()
        assert (pixels(tmp_path / "made/mask" / f"{name}.png") == pixels(masks / f"{name}.png")).all()


def test_a_data_set_file_is_a_source_and_its_options_stay(photos, tmp_path):
    root = photos.parent
    load(root, [image_set("win", resolution=8, repeats=2, caption_strategy="instanceprompt", instance_prompt="it")])
    assert make(root / "data.json", tmp_path / "made") == 0
    block = json.loads((tmp_path / "made/dataset.json").read_text())["datasets"][0]
    assert (block["resolution"], block["repeats"]) == (8, 2) and "instance_prompt" not in block
    found = audit(load_datasets("dataset.json", tmp_path / "made"))
    assert found.counts["samples"] == 18 and found.captions == ("it",)


@pytest.mark.parametrize("shape", KEEPERS)
def test_every_source_gives_the_same_pairs(shape, tmp_path):
    """The pairs it has already are left aside."""
    (tmp_path / "data.json").write_text(json.dumps(KEEPERS[shape](tmp_path, samples(("a", "sub/b", ".hidden/c")))))
    assert make(tmp_path / "data.json", tmp_path / "made", "--degrade", "noise") == 0
    source, found = (audit(load_datasets(name, tmp_path)) for name in ("data.json", "made/dataset.json"))
    assert found.captions == source.captions and found.provides == {"image", "rejected", "mask"}
    pictures = [{record.image.asset.read() for record in each.records} for each in (source, found)]
    assert pictures[0] == pictures[1] and len(pictures[0]) == len(found.records) >= 2
    if shape == "csv":
        assert {record.key for record in found.records} == {"a", "sub/b", "_.hidden/c"}


def test_templates_stay_in_the_data_set_file_and_out_of_the_captions(photos, tmp_path):
    settings = ["--set", "caption_template=a drawing of {caption}", "--set", "probability=2"]
    assert make(photos, tmp_path / "made", "--degrade", "blur", *settings) == 0
    assert (tmp_path / "made/preferred/a.txt").read_text() == "a photo of a\n"
    record = audit(load_datasets("dataset.json", tmp_path / "made")).records[0]
    assert record.caption == "a drawing of a photo of a" and record.drawing.probability == 2


def test_images_that_are_left_out_are_told(photos, tmp_path, capsys):
    write_image(photos / "tiny.png", (12, 8))
    (photos / "tiny.txt").write_text("tiny")
    settings = ["--set", "resolution=[16, 24]", "--set", "small_images=leave_out"]
    assert make(photos, tmp_path / "made", "--degrade", "blur", *settings) == 0
    assert "warning    `small_images` leaves out 1 of 7 images: tiny" in capsys.readouterr().out
    assert not (tmp_path / "made/preferred/tiny.png").exists()


def test_everything_wrong_is_told_at_once_and_nothing_is_written(photos, tmp_path, capsys):
    (photos / "a.txt").unlink()
    (photos / "b.png").write_bytes(b"")
    (photos.parent / "mask/e.png").unlink()
    (tmp_path / "made").mkdir()
    (tmp_path / "made/mine").write_text("mine")
    before = snapshot(tmp_path)
    assert make(photos, tmp_path / "made", "--degrade", "blur", "--within", str(photos.parent / "mask")) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/made: this folder is not empty (it holds 'mine')" in error
    assert f"{photos}: missing caption files (1): a.txt" in error
    assert f"{photos}: files that cannot be used (1): b.png is empty (0 bytes)" in error
    assert "--within: 1 of 5 images of 'images' have no partner" in error
    assert snapshot(tmp_path) == before


def test_images_that_stay_as_they_are_or_cannot_be_decoded_make_no_pair(photos, tmp_path, capsys):
    write_mask(photos / "flat.png", np.full((16, 24, 3), 90))
    (photos / "flat.txt").write_text("flat")
    (photos / "b.png").write_bytes(undecodable((photos / "b.png").read_bytes()))
    before = snapshot(tmp_path)
    assert make(photos, tmp_path / "new/made", "--degrade", "blur") == 2
    same, broken = sorted(capsys.readouterr().err.splitlines(), reverse=True)
    assert same.startswith(f"{photos}: images that came out as they were (1): flat (blur:2); choose another")
    assert broken.startswith(f"{photos}: files that cannot be used (1): b cannot be decoded (")
    assert snapshot(tmp_path) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--set", "resolution=x"], "--set: resolution: "),
        (["--set", "resolutoin=8"], "did you mean 'resolution'?"),
        (["--set", "id=x"], "'id' is stated by the folder itself"),
        (["--set", "resolution=64"], "--set: resolution: files smaller than what is trained (6)"),
        (["--within", "nowhere"], "--within: "),
    ],
)
def test_wrong_settings(photos, tmp_path, capsys, options, said):
    assert make(photos, tmp_path / "made", "--degrade", "blur", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_the_source_is_no_place_for_the_output(photos, tmp_path, capsys):
    os.symlink(photos, tmp_path / "link")
    for output in (photos / "made", tmp_path / "link" / "made"):
        assert make(photos, output) == 2
        assert "which is read and never written to" in capsys.readouterr().err
        assert not output.exists()


def test_one_image_set_at_a_time(photos, tmp_path, capsys):
    load(photos.parent, [image_set("win"), image_set("lose")])
    assert make(photos.parent / "data.json", tmp_path / "made") == 2
    assert "holds 2 image data sets ('win', 'lose')" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(photos, tmp_path, capsys):
    """In a process of its own, which may write no file beyond 300 bytes."""
    script = (
        "import resource, signal, sys; from flowhooks.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)); sys.exit(main(sys.argv[1:]))"
    )
    command = ["pairs", "make", str(photos), "--output", str(tmp_path / "made"), "--degrade", "blots", "--no-progress"]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "File too large" in done.stderr
    assert not (tmp_path / "made").exists()


def test_pairs_are_made_without_torch(photos, tmp_path):
    arguments = ["pairs", "make", str(photos), "--output", str(tmp_path / "made"), *ALL_KINDS, "--no-progress"]
    assert imported(f"from flowhooks.cli import main\nassert main({arguments!r}) == 0") == set()
