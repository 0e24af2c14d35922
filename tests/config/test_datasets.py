from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from flowhooks.config import Datasets, load_datasets, resolve_run
from flowhooks.errors import ConfigError, DataError
from tests.config.writing import SEED_DATASETS, written

IMAGE = {"id": "a", "instance_data_dir": "win"}
REJECTED = {
    "id": "r",
    "dataset_type": "conditioning",
    "conditioning_type": "reference_strict",
    "instance_data_dir": "lose",
}
MASK = {**REJECTED, "id": "m", "conditioning_type": "mask", "instance_data_dir": "mask"}


def told(blocks: Any, folder: Path) -> list[tuple[str | None, str]]:
    with pytest.raises(DataError) as caught:
        load_datasets(blocks, folder)
    return [(problem.path, problem.message) for problem in caught.value.problems]


def test_defaults(tmp_path):
    block = load_datasets([IMAGE], tmp_path).blocks[0]
    assert block == {
        "id": "a",
        "instance_data_dir": "win",
        "type": "local",
        "dataset_type": "image",
        "conditioning_type": None,
        "conditioning_data": [],
        "source_dataset_id": None,
        "pair_names": None,
        "duration": None,
        "sample_rate": None,
        "channels": None,
        "text_columns": None,
        "image_column": None,
        "caption_column": None,
        "rejected_column": None,
        "mask_column": None,
        "reference_argument": None,
        "reference_column": None,
        "reference": None,
        "missing_reference": "error",
        "reference_dropout": 0.0,
        "reference_resolution": None,
        "columns": None,
        "ties": "drop",
        "pairs": None,
        "min_gap": 0.0,
        "records": None,
        "repeats_from_folder_names": False,
        "mask_values": "grey",
        **dict.fromkeys(("split", "subset", "data_dir", "revision", "streaming", "max_samples")),
        "resolution": None,
        "resolution_type": "pixel",
        "aspect": None,
        "aspects": None,
        "resolution_multiple": 64,
        "minimum_image_size": None,
        "small_images": "error",
        "allow_upscale": False,
        "crop": "center",
        "crop_scale": "whole",
        "maximum_image_size": None,
        "target_downsample_size": None,
        "num_frames": 1,
        "frame_selection": "first",
        "caption_strategy": "textfile",
        "instance_prompt": None,
        "caption_template": None,
        "caption_lines": "one",
        "caption_shuffle": False,
        "keep_tags": 0,
        "caption_variants": 4,
        "caption_dropout": 0.0,
        "probability": 1.0,
        "repeats": 0,
        "start_step": 0,
        "end_step": None,
        "disabled": False,
    }


def test_both_forms_of_a_file_and_both_inline_are_one(tmp_path):
    written(tmp_path, SEED_DATASETS, "bare.json")
    written(tmp_path, {"$schema": "x", "datasets": SEED_DATASETS}, "object.json")
    bare, whole = (load_datasets(f"{name}.json", tmp_path) for name in ("bare", "object"))
    assert bare.blocks == whole.blocks
    assert bare.paths == ("$[0]", "$[1]") and whole.paths == ("$.datasets[0]", "$.datasets[1]")
    run = tmp_path / "run.json"
    for inline, paths in (
        (SEED_DATASETS, ("$.data[0]", "$.data[1]")),
        ({"datasets": SEED_DATASETS}, ("$.data.datasets[0]", "$.data.datasets[1]")),
    ):
        data = resolve_run({"data": inline}, run).data
        assert data is not None and data.blocks == bare.blocks and data.paths == paths and data.source == run


def test_a_link_may_be_stated_on_either_side_or_both(tmp_path):
    for image, partner in (
        ({**IMAGE, "conditioning_data": ["r"]}, REJECTED),
        ({**IMAGE, "conditioning_data": "r"}, REJECTED),
        (IMAGE, {**REJECTED, "source_dataset_id": "a"}),
        ({**IMAGE, "conditioning_data": ["r"]}, {**REJECTED, "source_dataset_id": "a"}),
    ):
        data = load_datasets([image, partner], tmp_path)
        assert data.blocks[0]["conditioning_data"] == ["r"]
        assert data.provides == {"data:image", "data:rejected"}


def test_all_linked_sets_apply(tmp_path):
    masks = [{**MASK, "id": f"m{i}", "source_dataset_id": "a"} for i in range(3)]
    data = load_datasets([{**IMAGE, "conditioning_data": ["r"]}, *masks, REJECTED], tmp_path)
    assert data.blocks[0]["conditioning_data"] == ["m0", "m1", "m2", "r"]
    assert data.provides == {"data:image", "data:rejected", "data:mask"}


def test_disabled_sets_and_links_to_them_do_not_count(tmp_path):
    mask = {**MASK, "disabled": True}
    data = load_datasets([{**IMAGE, "conditioning_data": ["r", "m"]}, REJECTED, mask], tmp_path)
    assert data.provides == {"data:image", "data:rejected"}
    assert data.blocks[0]["conditioning_data"] == ["r"]


def test_the_document_reads_back_from_any_folder(tmp_path):
    data = load_datasets(
        copy.deepcopy([IMAGE, {**IMAGE, "id": "b", "instance_data_dir": "digits:preferred"}]), tmp_path
    )
    folders = [block["instance_data_dir"] for block in data.document()["datasets"]]
    assert folders == [str(tmp_path / "win"), "digits:preferred"]
    assert load_datasets(data.document(), tmp_path / "elsewhere").document() == data.document()


def test_paths_of_blocks_made_by_hand():
    assert Datasets(source=Path("x"), blocks=({}, {})).paths == ("$[0]", "$[1]")


@pytest.mark.parametrize(
    "blocks, path, words",
    [
        ([], "$", "at least 1 entry"),
        ({}, "$.datasets", "is missing"),
        ({"datasets": [], "dataset": 1}, "$.dataset", "did you mean 'datasets'?"),
        ([{**IMAGE, "instance_data": "x"}], "$[0].instance_data", "did you mean 'instance_data_dir'?"),
        ([{**IMAGE, "type": "locl"}], "$[0].type", "did you mean 'local'?"),
        ([{**IMAGE, "crop": "centre"}], "$[0].crop", "did you mean 'center'?"),
        (
            [{**IMAGE, "resolution": "512"}],
            "$[0].resolution",
            "expected a number, a list or null, found the string '512'; remove the quotes",
        ),
        ([{**IMAGE, "resolution": [512]}], "$[0].resolution", "at least 2 entries, found 1"),
        ([{**IMAGE, "repeats": -1}], "$[0].repeats", "at least 0"),
        ([{**IMAGE, "probability": 0}], "$[0].probability", "above 0"),
        ([{**IMAGE, "end_step": 5, "start_step": 5}], "$[0].end_step", "5 is not after `start_step` 5"),
        ([{**IMAGE, "caption_template": "x {y}"}], "$[0].caption_template", "unknown placeholder {y}"),
        ([{**IMAGE, "caption_template": ["{caption}", "x"]}], "$[0].caption_template[1]", "put {caption} where"),
        ([{**IMAGE, "keep_tags": 1}], "$[0].keep_tags", "no effect without `caption_shuffle`"),
        ([{**IMAGE, "caption_dropout": 1.5}], "$[0].caption_dropout", "at most 1"),
        (
            [IMAGE, {**REJECTED, "source_dataset_id": "a", "probability": 0.5}],
            "$[1].probability",
            "belongs to an image set",
        ),
        ([IMAGE, IMAGE], "$[1].id", "is the id of $[0] too"),
        (
            [{**IMAGE, "conditioning_data": ["rr"]}, {**REJECTED, "source_dataset_id": "a"}],
            "$[0].conditioning_data[0]",
            "did you mean",
        ),
        (
            [{**IMAGE, "conditioning_data": "b"}, {**IMAGE, "id": "b"}],
            "$[0].conditioning_data",
            "expected one of type 'conditioning'",
        ),
        ([IMAGE, REJECTED], "$[1]", "belongs to no image data set"),
        ([IMAGE, {**REJECTED, "source_dataset_id": "r"}], "$[1].source_dataset_id", "in a circle: 'r' -> 'r'"),
        ([{**IMAGE, "conditioning_type": "mask"}], "$[0].conditioning_type", "conditioning set"),
        (
            [IMAGE, {**REJECTED, "conditioning_type": None, "source_dataset_id": "a"}],
            "$[1].conditioning_type",
            "is missing",
        ),
        ([REJECTED], "$", "no data set with `dataset_type` 'image'"),
        (
            [{**IMAGE, "conditioning_data": "r"}, {**IMAGE, "id": "b"}, {**REJECTED, "source_dataset_id": "b"}],
            "$[2].source_dataset_id",
            "remove one of the two",
        ),
    ],
)
def test_mistakes_are_told_at_their_place(tmp_path, blocks, path, words):
    found = told(blocks, tmp_path)
    assert any(where == path and words in message for where, message in found), found


def test_a_circle_is_told_as_one(tmp_path):
    one = {**REJECTED, "id": "r", "source_dataset_id": "m"}
    two = {**MASK, "source_dataset_id": "r"}
    assert told([IMAGE, one, two], tmp_path) == [
        (
            "$[1].source_dataset_id",
            "the links go in a circle: 'r' -> 'm' -> 'r'; a conditioning set belongs to an image set",
        ),
        (
            "$[2].source_dataset_id",
            "the links go in a circle: 'm' -> 'r' -> 'm'; a conditioning set belongs to an image set",
        ),
    ]


def test_paths_in_messages_follow_the_form_of_the_file(tmp_path):
    written(tmp_path, {"datasets": [IMAGE, IMAGE]}, "data.json")
    assert told("data.json", tmp_path) == [
        ("$.datasets[1].id", "'a' is the id of $.datasets[0] too; give each data set its own")
    ]


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_datasets("nowhere.json", tmp_path)


@pytest.mark.parametrize(
    "times, faults",
    [
        ([(0, None)], []),
        ([(0, 5), (5, None)], []),
        ([(0, 50), (3, 7), (50, 100)], []),
        ([(0, 99)], [("$.data[0].end_step", "from step 99 to 100")]),
        ([(9, None)], [("$.data[0].start_step", "from step 0 to 9")]),
        ([(3, 6), (0, 6), (8, 12)], [("$.data[0].end_step", "step 6 to 8"), ("$.data[2].end_step", "step 12 to 100")]),
    ],
)
def test_a_step_at_which_nothing_is_drawn_is_an_error(tmp_path, times, faults):
    blocks = [{**IMAGE, "id": f"s{i}", "start_step": a, "end_step": b} for i, (a, b) in enumerate(times)]
    blocks += [{**IMAGE, "id": "off", "disabled": True}, {**REJECTED, "source_dataset_id": "s0"}]
    document = {"data": blocks, "training": {"max_train_steps": 100}}
    if not faults:
        assert resolve_run(document, tmp_path / "run.json").data is not None
        return
    with pytest.raises(ConfigError) as caught:
        resolve_run(document, tmp_path / "run.json")
    told = [(problem.path, problem.message) for problem in caught.value.problems]
    assert len(told) == len(faults)
    for (path, message), (where, words) in zip(told, faults, strict=True):
        assert path == where and words in message


def test_instance_prompts_are_those_of_sets_that_have_one_for_every_image(tmp_path):
    told = {"caption_strategy": "instanceprompt", "instance_prompt": " a photo of xyz "}
    off = {**IMAGE, **told, "id": "b", "instance_prompt": "off", "disabled": True}
    unused = {**IMAGE, "id": "c", "caption_strategy": "filename", "instance_prompt": "unused"}
    assert load_datasets([{**IMAGE, **told}, off, unused], tmp_path).instance_prompts == ("a photo of xyz",)
    assert load_datasets([IMAGE], tmp_path).instance_prompts == ()
