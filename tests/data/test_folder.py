"""A plain folder means what its files and the names of its sub-folders say; what could mean two things is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowhooks.config import load_datasets, load_run
from flowhooks.data import audit
from flowhooks.data.folder import folder_blocks, says_something
from flowhooks.data.folder_sizes import frames_within
from flowhooks.errors import DataError
from tests.data.folders import write_image


def write(root: Path, names: dict[str, str | None], size: tuple[int, int] = (32, 32)) -> Path:
    """Images of noise with their captions, None for no text file. `.gif` are videos of nine frames; a mask is white."""
    for seed, (name, caption) in enumerate(names.items()):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".gif":
            frames = np.random.default_rng(seed).integers(0, 256, (9, size[1], size[0], 3), dtype=np.uint8)
            first, *others = map(Image.fromarray, frames)
            first.save(file, save_all=True, append_images=others, duration=100)
        elif "mask" in file.parts:
            Image.new("L", size, 255).save(file)
        else:
            write_image(file, size, seed)
        if caption is not None:
            file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return root


PLAIN = {"a.png": "one", "sub/b.jpg": "two"}
PAIRS = {"preferred/a.png": "one", "rejected/a.jpg": None, "mask/a.png": None}
EDITS = {"edited/a.png": "remove it", "source_1/a.png": None, "source_2/a.png": None, "worse/a.png": None}


@pytest.mark.parametrize(
    "names, kinds, captions",
    [
        pytest.param(PLAIN, [None], "textfile", id="images with text files, in sub-folders too"),
        pytest.param({"a_red_bicycle.png": None}, [None], "filename", id="names that say something"),
        pytest.param(PAIRS, [None, "reference_strict", "mask"], "textfile", id="pairs with masks"),
        pytest.param(
            {"Win/a.png": "one", "Lose/a.png": None}, [None, "reference_strict"], "textfile", id="other words for pairs"
        ),
        pytest.param(
            EDITS,
            [None, "reference_strict", "reference_image", "reference_image"],
            "textfile",
            id="edits of two references, compared",
        ),
        pytest.param(
            {"images/a.png": "one", "clips/b.gif": "two"}, [None, None], "textfile", id="images beside videos"
        ),
        pytest.param({"w/a.png": "one", "l/a.png": None}, [None, "reference_strict"], "textfile", id="one letter each"),
        pytest.param({"up/a.png": "one", "down/b.png": "two"}, [None, None], "textfile", id="thumbs up and down"),
        pytest.param({"cats/1.png": "a", "dogs/1.png": "b"}, [None], "textfile", id="sub-folders that mean nothing"),
    ],
)
def test_a_folder_means_its_sets(names, kinds, captions, tmp_path):
    folder = write(tmp_path / "mine", names)
    datasets = load_datasets(folder, tmp_path)
    assert [block["conditioning_type"] for block in datasets.blocks] == kinds
    assert datasets.blocks[0]["caption_strategy"] == captions
    records = audit(datasets).records
    assert len(records) == sum(caption is not None for caption in names.values()) or captions == "filename"
    assert {block["id"] for block in datasets.blocks if block["num_frames"] == 9} <= {"clips"}
    labels = [each.columns.get("label") for each in records]
    assert labels == ([0, 1] if "up/a.png" in names else [None] * len(records))
    assert [record.geometry.frames for record in records] == ([9, 1] if "clips/b.gif" in names else [1] * len(records))


@pytest.mark.parametrize(
    "names, patterns, captions",
    [
        pytest.param({"a_w.png": "one", "a_l.jpg": None}, ["*_w", "*_l"], ["one"], id="the preferred side's text"),
        pytest.param({"x/a_w.png": None, "x/a_l.png": None, "x/a.png": "one"}, None, [], id="beside another image"),
        pytest.param(
            {"red_cat-good.png": None, "red_cat-bad.png": None}, ["*-good", "*-bad"], ["red cat"], id="the pair's name"
        ),
        pytest.param(
            {"images/a_win.png": "one", "images/a_lose.png": None, "images/b_win.png": "two", "mask/a.png": None},
            ["*_win", "*_lose"],
            ["one"],
            id="with masks, and one without a rejected side",
        ),
    ],
)
def test_pairs_of_one_folder_are_told_by_their_names(names, patterns, captions, tmp_path):
    folder = write(tmp_path / "mine", names)
    if patterns is None:
        with pytest.raises(DataError, match=r"holds 1 pair by name, such as 'x/a_w.png', beside x/a.png, which"):
            folder_blocks(folder)
        return
    datasets = load_datasets(folder, tmp_path)
    assert datasets.blocks[0]["pair_names"] == patterns and "data:rejected" in datasets.provides
    audited = audit(datasets)
    assert [record.caption for record in audited.records] == captions
    for record in audited.records:
        assert record.rejected is not None and bool(record.masks) == ("mask/a.png" in names)


def test_a_table_in_the_folder_says_what_it_holds(tmp_path):
    write(tmp_path, {"win/a.png": None, "lose/a.png": None})
    row = {"file_name": "win/a.png", "rejected_file_name": "lose/a.png", "text": "one"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (record,) = audit(load_datasets(tmp_path, Path())).records
    assert record.caption == "one" and record.rejected is not None


@pytest.mark.parametrize(
    "names, message",
    [
        pytest.param({}, "holds no image and no video", id="nothing"),
        pytest.param({"a.png": "one", "b.png": None}, "1 of 2 images have no caption in a text file: b.png", id="half"),
        pytest.param({"IMG_0001.png": None}, "say nothing of the image: IMG_0001.png", id="a camera's names"),
        pytest.param(
            {"a.png": "one", "mask/a.png": None}, "1 image beside the folder 'mask'", id="masks beside images"
        ),
        pytest.param({"preferred/a.png": "one"}, "'preferred' and no rejected side", id="half of pairs"),
        pytest.param({"up/a.png": "one"}, "'up' and no 'down': labels teach by both", id="half of labels"),
        pytest.param({"up/a.png": "1", "down/b.png": "2", "mask/a.png": None}, "which of them", id="labels and masks"),
        pytest.param({"rejected/a.png": None}, "nothing that they belong to", id="the other half"),
        pytest.param({**PAIRS, "more/a.png": "x"}, "holds 'more' beside", id="a stranger beside pairs"),
        pytest.param({**PAIRS, "edited/a.png": "x"}, "which of them is trained on", id="pairs and edits"),
        pytest.param({"train/a.png": "x", "test/b.png": "y"}, "kept from training; name the folder", id="a test set"),
        pytest.param({"train/a.png": "x", "train/mask/a.png": "y"}, "'train/mask', which looks like", id="deeper down"),
        pytest.param(
            {"x/a.png": "1", "x/b.png": "2", "y/a.png": None, "y/b.png": None}, "which may be pairs", id="two alike"
        ),
        pytest.param({"a.png": "one", "b.gif": "two"}, "put them into two folders", id="images and videos in one"),
    ],
)
def test_what_could_mean_two_things_is_refused_with_the_choices(names, message, tmp_path):
    folder = write(tmp_path / "mine", names)
    folder.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message) as raised:
        folder_blocks(folder)
    assert str(folder) in str(raised.value)


def test_a_data_set_file_in_the_folder_is_to_be_named(tmp_path):
    (write(tmp_path, PLAIN) / "data.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds data.json, a data set file .* name that file"):
        folder_blocks(tmp_path)
    (tmp_path / "data.json").rename(tmp_path / "run.json")
    with pytest.raises(DataError, match="it is the folder of a run"):
        folder_blocks(tmp_path)


@pytest.mark.parametrize(
    "sizes, keys",
    [
        pytest.param([(64, 48)] * 3, {}, id="all alike stay as they are"),
        pytest.param([(1600, 1200), (1100, 1100)], {"resolution": 1024}, id="the largest"),
        pytest.param([(900, 1000), (700, 700)], {"resolution": 640}, id="what all reach"),
        pytest.param([(520, 520)] * 10 + [(200, 200)], {"resolution": 512, "small_images": "leave_out"}, id="but few"),
        pytest.param([(520, 520)] * 6 + [(96, 80)], {"resolution": 512, "small_images": "leave_out"}, id="but one"),
        pytest.param(
            [(520, 520)] * 2 + [(96, 96)], {"resolution": 96, "resolution_multiple": 16}, id="no one of three"
        ),
        pytest.param([(50, 40), (41, 60)], {"resolution": 32, "resolution_multiple": 16}, id="tiny"),
    ],
)
def test_samples_are_as_large_as_the_files_allow(sizes, keys, tmp_path):
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"a bird {number}.png", compress_level=1)
    (block,) = folder_blocks(tmp_path)
    usual = {"resolution_type": "pixel_area", "aspect": "bucket"} if keys else {}
    assert {key: block[key] for key in block if key not in ("id", "instance_data_dir", "caption_strategy")} == {
        **keys,
        **usual,
    }
    records = audit(load_datasets(tmp_path, Path())).records
    assert len(records) == len(sizes) - ("small_images" in keys)


def test_a_number_of_frames_is_one_that_pipelines_take():
    assert [frames_within(least) for least in (3, 8, 9, 16, 17, 80, 81, 500)] == [5, 5, 9, 9, 17, 73, 81, 81]


def test_names_of_cameras_and_programs_are_no_captions():
    said = {"a_red_bicycle": True, "cats/old_tom": True, "IMG_20240101": False, "DSC00012": False, "0001": False}
    said |= {"3f2a9c1b77": False, "photo_1": False, "Mädchen": True}
    assert {name: says_something(name) for name in said} == said


def test_a_run_may_name_the_folder(tmp_path, monkeypatch):
    write(tmp_path / "pairs", PAIRS)
    file = tmp_path / "run.json"
    document = {"model": {"pretrained_model_name_or_path": "digits"}, "data": "pairs/", "method": {"flow_dpo": {}}}
    file.write_text(json.dumps(document), encoding="utf-8")
    run = load_run(file, complete=True)
    assert run.provides == {"data:image", "data:rejected", "data:mask"}
    # What is kept of the run says it in full.
    assert [Path(block["instance_data_dir"]) for block in run.document["data"]["datasets"]] == [
        tmp_path / "pairs" / name for name in ("preferred", "rejected", "mask")
    ]
    monkeypatch.chdir(tmp_path / "pairs")
    assert load_run(file, ["data=preferred"]).provides == {"data:image"}


def test_one_prompt_for_all_does_not_hide_captions(tmp_path):
    for number in range(2):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.png")
    (block,) = folder_blocks(tmp_path, "a bird")
    assert (block["caption_strategy"], block["instance_prompt"]) == ("instanceprompt", "a bird")
    (tmp_path / "1.txt").write_text("a red bird")
    with pytest.raises(
        DataError, match="1 of 2 images have a caption in a text file, which `--prompt` would not use: 1"
    ):
        folder_blocks(tmp_path, "a bird")
