"""Data set files of another trainer are read; what cannot be is told with what to write."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
from PIL import Image

from flowhooks.cli import main
from flowhooks.config import load_datasets
from flowhooks.data import audit
from flowhooks.data.other_trainers import OTHER, OURS, ROW_OF_VALUE, TABLE, is_foreign, table
from flowhooks.data.translation import translate
from flowhooks.documents.schemas import schemas
from flowhooks.documents.validation import problems_in, with_defaults
from flowhooks.errors import DataError, FlowhooksWarning
from flowhooks.train import train
from tests.cli.folders import write_pipeline
from tests.data.folders import write_image
from tests.data.moving import write_clip
from tests.train.runs import history, make_run, write_model

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
    expected |= {"crop_scale": "original", "maximum_image_size": 1.0, "target_downsample_size": 1.0}
    expected |= {"minimum_image_size": 0.5, "small_images": "leave_out", "allow_upscale": True, "disabled": False}
    assert {key: blocks[0][key] for key in expected} == expected
    assert blocks[1]["disabled"]
    (warning,) = told
    assert warning.partition(": ")[2].startswith("read as a data set file of SimpleTuner; taken over: `crop`, ")
    taken, _, rest = warning.partition("without an effect here: ")
    sizes = ("minimum_image_size", "maximum_image_size", "target_downsample_size")
    assert all(taken.count(f"`{key}`") == 1 for key in ("crop", "crop_style", "crop_aspect", *sizes))
    idle = ("cache_dir_vae", "skip_file_discovery", "metadata_backend", "cache_file_suffix")
    assert all(rest.count(f"`{key}`") == 1 for key in idle) and "the block 'text-embeds' of text_embeds" in rest
    assert "`flowhooks convert` writes it in our words" in rest


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
        ({"crop": True, "crop_aspect": "golden"}, "crop_aspect", "write one of 'square', 'preserve', 'closest'"),
        ({"only_instance_prompt": True}, "only_instance_prompt", "needs `instance_prompt`"),
        ({"dataset_type": "video"}, "dataset_type", "write `num_frames`"),
        ({"video": 5}, "video", "expected an object"),
        ({"video": {"num_frames": 5, "min_frames": 9}}, "video.min_frames", "is above `num_frames` 5"),
        ({"video": {"num_frames": 5, "max_frames": 9}}, "video.max_frames", "is a key of another trainer"),
        ({"video": {"num_frames": 5, "bucket_strategy": "frames"}}, "video.bucket_strategy", "all have `num_frames`"),
        ({"huggingface": {"composite": {}}}, "huggingface.composite", "is a key of another trainer"),
        ({"metadata_backend": "parquet"}, "metadata_backend", '`"type": "parquet"`'),
        ({"crop_style": {}}, "crop_style", "is no way to cut here"),
        ({"crop_aspect": []}, "crop_aspect", "is no shape here"),
        *(({key: "x"}, key, row.here) for row in TABLE if row.fate == OTHER and not row.values for key in row.keys),
        *(({k: v}, k, "is of another trainer; here: ") for (k, v), row in ROW_OF_VALUE.items() if row.fate == OTHER),
    ],
)
def test_what_means_something_else_is_told_with_what_to_write(tmp_path, block, key, words):
    ((path, message),) = refused(block, tmp_path)
    assert path == f"$[0].{key}" and words in message


def test_uncut_pictures_keep_their_aspect(tmp_path):
    (block,), told = read([{"id": "a", "instance_data_dir": "a", "crop": False, "crop_style": "center"}], tmp_path)
    assert (
        block["aspect"] == "own"
        and block["crop_scale"] == "whole"
        and "without an effect here: `crop_style`" in told[0]
    )


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
    assert {key for row in TABLE if not row.values for key in row.keys} & ours == OURS
    assert {key for key, _ in ROW_OF_VALUE if key != "metadata_backend"} <= ours


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"crop": True}, {"crop_scale": "original", "aspect": "crop", "crop": "center", "allow_upscale": True}),
        ({"crop": False}, {"crop_scale": "whole", "aspect": "own", "allow_upscale": True}),
        ({"crop": True, "crop_aspect": "preserve", "crop_style": "corner"}, {"aspect": "own", "crop": "corner"}),
        (
            {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [0.75, 1.0]},
            {"aspect": "random", "aspects": [0.75, 1.0]},
        ),
        ({"crop": True, "crop_aspect_buckets": [0.75]}, {"aspect": "crop", "aspects": None}),
        (
            {"crop": True, "maximum_image_size": 128, "target_downsample_size": 96},
            {"maximum_image_size": 128, "target_downsample_size": 96},
        ),
        ({"crop": True, "maximum_image_size": 128}, {"maximum_image_size": None, "crop_scale": "original"}),
        ({"crop": False, "maximum_image_size": 128, "target_downsample_size": 96}, {"maximum_image_size": None}),
        ({"repeats": 3, "cache_dir_vae": "x"}, {"repeats": 3}),
        (
            {"prepend_instance_prompt": True, "instance_prompt": "a {b}"},
            {"caption_template": "a {{b}} {caption}", "caption_strategy": "textfile"},
        ),
        (
            {"prepend_instance_prompt": True, "only_instance_prompt": True, "instance_prompt": "a"},
            {"caption_template": None, "caption_strategy": "instanceprompt"},
        ),
        (
            {"dataset_type": "video", "video": {"num_frames": 9, "is_i2v": True}},
            {"dataset_type": "image", "num_frames": 9, "reference": "first_frame"},
        ),
        (
            {"type": "csv", "csv_file": "a.csv", "csv_caption_column": "words", "caption_strategy": "csv"},
            {"instance_data_dir": "a.csv", "caption_column": "words", "caption_strategy": "column"},
        ),
        (
            {"type": "huggingface", "dataset_name": "me/cats", "huggingface": {"image_column": "jpg"}},
            {"instance_data_dir": "me/cats", "image_column": "jpg", "caption_strategy": "column"},
        ),
    ],
)
def test_what_means_the_same_is_taken_over(tmp_path, theirs, expected):
    # Columns are looked for where a table is.
    (tmp_path / "a.csv").write_text("image,words\n")
    document = [{"id": "a", "instance_data_dir": "a", "resolution": 64, **theirs}]
    read_back = translate(document, "data.json", "$")
    assert read_back.foreign and not read_back.problems
    complete = with_defaults(read_back.document, "dataloader")[0]
    assert problems_in(read_back.document, "dataloader", file="data.json") == []
    assert {key: complete[key] for key in expected} == expected


def test_any_block_of_theirs_makes_the_whole_file_theirs(tmp_path):
    """The sizes of the first set alone could be ours, and would mean an error."""
    first = {"id": "a", "instance_data_dir": "a", "resolution": 64, "maximum_image_size": 96}
    embeds = {"id": "t", "dataset_type": "text_embeds", "default": True}
    (read_back, _), told = read([first, embeds], tmp_path)
    assert read_back["maximum_image_size"] is None and read_back["allow_upscale"] and len(told) == 1


def write_files(folder, document):
    """Write images, captions and clips for every set of a file of the other trainer, of several shapes."""
    for block in document:
        place = folder / block.get("instance_data_dir", "none")
        for i, size in enumerate([(96, 96), (80, 160), (40, 64)] if "instance_data_dir" in block else []):
            if block.get("dataset_type") == "video":
                write_clip(place / f"clip {i}.webp", 6, size, i)
            else:
                write_image(place / f"{i}.png", size, i + len(block["id"]))
                (place / f"{i}.txt").write_text(f"number {i}")


def smaller(document, over=16):
    """Return the blocks with their sizes along an edge over a number, so that small images do."""
    squared = {"area": over**2, "pixel": over, "pixel_area": over}
    sizes = ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size")
    return [
        {key: value / squared[block["resolution_type"]] if key in sizes else value for key, value in block.items()}
        for block in document
    ]


@pytest.mark.parametrize("name", ["square", "edit", "pairs", "video"])
def test_a_converted_file_is_audited_as_the_original_is(tmp_path, name, capsys):
    document = smaller(json.loads((CASES / f"other_trainer_{name}.json").read_text()))
    write_files(tmp_path, document)
    (tmp_path / "data.json").write_text(json.dumps(document))
    before = (tmp_path / "data.json").read_bytes()
    assert main(["convert", str(tmp_path / "data.json"), "--output", str(tmp_path / "new/ours.json")]) == 0
    said = capsys.readouterr().out
    assert (
        "taken over `crop`" in said
        and "no effect  `cache_dir_vae`" in said
        and (tmp_path / "data.json").read_bytes() == before
    )
    converted = json.loads((tmp_path / "new/ours.json").read_text())
    assert not any(map(is_foreign, converted)) and not any("embeds" in block["id"] for block in converted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlowhooksWarning)
        theirs = audit(load_datasets("data.json", tmp_path))
        assert main(["check", str(tmp_path / "data.json")]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", FlowhooksWarning)
        ours = audit(load_datasets("new/ours.json", tmp_path))
        assert main(["check", str(tmp_path / "new/ours.json")]) == 0
    assert theirs.records and theirs.report == ours.report and theirs.counts == ours.counts
    assert [shown(record) for record in theirs.records] == [shown(record) for record in ours.records]
    assert main(["convert", str(tmp_path / "data.json"), "--output", str(tmp_path / "new/ours.json")]) == 2
    assert main(["convert", str(tmp_path / "new/ours.json")]) == 2
    told = capsys.readouterr().err
    assert "nothing is overwritten" in told and "there is nothing to convert" in told


def shown(record):
    return record.key, record.dataset, record.caption, record.geometry, record.rejected_geometry, record.drawing


def test_convert_prints_what_it_takes_over_also_where_it_refuses(tmp_path, capsys):
    block = {
        "id": "a",
        "instance_data_dir": "a",
        "resolution": 64,
        "crop": True,
        "crop_style": "face",
        "parquet": {"x": 1},
    }
    (tmp_path / "data.json").write_text(json.dumps([block]))
    assert main(["convert", str(tmp_path / "data.json")]) == 2
    captured = capsys.readouterr()
    assert "taken over `crop`" in captured.out and not (tmp_path / "data.flowhooks.json").exists()
    assert "$[0].crop_style" in captured.err and "$[0].parquet" in captured.err


def test_convert_names_every_fault_of_the_file_at_once(tmp_path, capsys):
    """Of their keys, of ours, and of neither, each at its place in the file that is converted."""
    theirs = {"id": "a", "instance_data_dir": "a", "cache_dir_vae": "x", "parquet": {"x": 1}, "crop": "x"}
    other = {
        "id": "b",
        "instance_data_dir": "b",
        "dataset_type": "conditioning",
        "caption_strategy": None,
        "aws_secret_access_key": "x",
    }
    (tmp_path / "data.json").write_text(json.dumps([theirs, other]))
    assert main(["convert", str(tmp_path / "data.json")]) == 2
    told = capsys.readouterr().err
    assert all(f"data.json: $[{place}: " in told for place in ("0].parquet", "0].crop", "1].aws_secret_access_key"))
    assert "caption_strategy" not in told and "has no place in this file" in told


def test_one_set_is_no_list_of_sets(tmp_path, capsys):
    (tmp_path / "data.json").write_text(json.dumps({"id": "a", "instance_data_dir": "a", "cache_dir_vae": "x"}))
    for command in ("check", "convert"):
        assert main([command, str(tmp_path / "data.json")]) == 2
        assert capsys.readouterr().err.count("put it between [ and ]") == 1


def test_a_table_is_no_data_set_file(tmp_path, capsys):
    (tmp_path / "pick.parquet").write_bytes(b"PAR1\xff\xffPAR1")
    assert main(["check", str(tmp_path / "pick.parquet")]) == 2
    assert '"type": "parquet", "instance_data_dir": "pick.parquet"' in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", ["square", "edit", "pairs"])
def test_their_files_are_shown_and_trained_for_two_steps(tmp_path, name, model):
    document = smaller(json.loads((CASES / f"other_trainer_{name}.json").read_text()), over=64)
    document = [block | {"resolution_multiple": 16} if "resolution" in block else block for block in document]
    write_files(tmp_path, document)
    (tmp_path / "data.json").write_text(json.dumps(document))
    pairs = [] if name == "square" else [{"type": "flow_dpo"}]
    sections = {"hooks": pairs, "training": {"max_train_steps": 2, "train_batch_size": 1, "log_every_steps": 1}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FlowhooksWarning)
        assert main(["inspect", str(tmp_path / "data.json"), "--output", str(tmp_path / "page"), "--no-progress"]) == 0
        train(make_run(model, tmp_path / "data.json", tmp_path / "out", **sections), progress=False)
    assert [math.isfinite(line["loss"]) for line in history(tmp_path / "out") if "loss" in line] == [True, True]


def test_the_docs_print_the_table():
    assert table() in (ROOT / "docs" / "from_other_trainers.md").read_text(encoding="utf-8")
