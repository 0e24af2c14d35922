"""Data set files of another trainer are read; what cannot be is told with what to write."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from PIL import Image

from flowhooks.cli import main
from flowhooks.config import load_datasets
from flowhooks.data.other_trainers import _OURS, OTHER, TABLE, table
from flowhooks.documents.schemas import schemas
from flowhooks.errors import DataError, FlowhooksWarning
from tests.cli.folders import write_pipeline

CASES = Path(__file__).parent / "cases"
ROOT = Path(__file__).parents[2]


def read(blocks, folder):
    (folder / "data.json").write_text(json.dumps(blocks))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = load_datasets("data.json", folder)
    return found.blocks, [str(each.message) for each in told if each.category is FlowhooksWarning]


def refused(block, folder):
    with pytest.raises(DataError) as caught:
        read([{"id": "a", "instance_data_dir": "a", **block}], folder)
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_the_square_one_is_read_with_one_warning(tmp_path):
    blocks, told = read(json.loads((CASES / "other_trainer_square.json").read_text()), tmp_path)
    expected = {"resolution": 1.0, "resolution_type": "area", "aspect": "crop", "crop": "center"}
    expected |= {"minimum_image_size": 0.5, "small_images": "leave_out", "allow_upscale": True, "disabled": False}
    assert {key: blocks[0][key] for key in expected} == expected
    assert blocks[1]["disabled"]
    (warning,) = told
    assert "taken over: `crop`, `crop_style`, `crop_aspect`, `minimum_image_size`;" in warning
    idle = ("cache_dir_vae", "skip_file_discovery", "metadata_backend", "cache_file_suffix", "maximum_image_size")
    assert all(warning.count(f"`{key}`") == 1 for key in idle) and "the block 'text-embeds' of text_embeds" in warning


def test_the_one_with_references_is_read_with_its_link(tmp_path):
    blocks, told = read(json.loads((CASES / "other_trainer_edit.json").read_text()), tmp_path)
    expected = {"resolution": 1024, "resolution_type": "pixel_area", "aspect": "crop", "crop": "random"}
    expected |= {"conditioning_data": ["reference"], "minimum_image_size": 768}
    assert {key: blocks[0][key] for key in expected} == expected
    assert blocks[1]["conditioning_type"] == "reference_strict" and len(told) == 1


def test_check_takes_it_with_its_pictures(tmp_path, capsys):
    shutil.copy(CASES / "other_trainer_square.json", tmp_path / "data.json")
    (tmp_path / "dataset").mkdir()
    for name, side in (("large", 1100), ("between", 800), ("small", 400)):
        Image.new("RGB", (side, side), side % 256).save(tmp_path / "dataset" / f"{name}.png")
        (tmp_path / "dataset" / f"{name}.txt").write_text("a square")
    write_pipeline(tmp_path / "model")
    run = {"model": {"pretrained_model_name_or_path": str(tmp_path / "model")}, "data": "data.json"}
    run |= {"output_dir": str(tmp_path / "out"), "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "run.json").write_text(json.dumps(run))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["check", str(tmp_path / "run.json")]) == 0
    out = capsys.readouterr().out
    assert "1024x1024: 2 samples" in out and "small" in out


@pytest.mark.parametrize(
    "block, key, words",
    [
        ({"crop": True, "crop_style": "face"}, "crop_style", "write \"crop\": one of 'center', 'random', 'corner'"),
        ({"crop": True, "crop_aspect": "closest"}, "crop_aspect", 'write "aspect": "bucket"'),
        ({"resolution": 1024, "target_downsample_size": 1536}, "target_downsample_size", "shrunk to `resolution`"),
        ({"maximum_image_size": 2.0}, "maximum_image_size", "shrunk to `resolution`"),
        ({"metadata_backend": "parquet"}, "metadata_backend", '`"type": "parquet"`'),
        ({"crop_style": {}}, "crop_style", "is no way to cut here"),
        ({"crop_aspect": []}, "crop_aspect", "draws a shape"),
        *(({key: "x"}, key, row.here) for row in TABLE if row.fate == OTHER for key in row.keys),
    ],
)
def test_what_means_something_else_is_told_with_what_to_write(tmp_path, block, key, words):
    ((path, message),) = refused(block, tmp_path)
    assert path == f"$[0].{key}" and words in message


def test_uncut_pictures_keep_their_aspect(tmp_path):
    (block,), told = read([{"id": "a", "instance_data_dir": "a", "crop": False, "crop_style": "center"}], tmp_path)
    assert block["aspect"] == "bucket" and "without an effect here: `crop_style`" in told[0]


def test_a_place_is_told_as_it_is_written(tmp_path):
    embeds = {"id": "t", "dataset_type": "text_embeds"}
    with pytest.raises(DataError) as caught:
        read({"datasets": [embeds, {"id": "a", "instance_data_dir": "a", "crop": True, "repeets": 1}]}, tmp_path)
    assert [problem.path for problem in caught.value.problems] == ["$.datasets[1].repeets"]


def test_our_own_keys_are_left_alone(tmp_path):
    block = {"id": "a", "instance_data_dir": "a", "minimum_image_size": 64, "crop": "corner"}
    (read_back,), told = read([block], tmp_path)
    assert told == [] and read_back["small_images"] == "error" and not read_back["allow_upscale"]
    ours = set(schemas()["dataloader"]["$defs"]["dataset"]["properties"])
    assert {key for row in TABLE for key in row.keys} & ours == _OURS


def test_the_docs_print_the_table():
    assert table() in (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
