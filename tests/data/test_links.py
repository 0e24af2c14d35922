from __future__ import annotations

from pathlib import Path

import pytest

from flowhooks.data.findings import Findings
from flowhooks.data.links import link
from flowhooks.documents.validation import with_defaults
from tests.data.folders import image_set, partner_set


def linked(root: Path, *blocks: dict) -> tuple[dict[int, tuple[int, ...]], list[str]]:
    found = Findings(root / "data.json")
    return link(tuple(with_defaults(list(blocks), "dataloader")), found), [
        f"{problem.path}: {problem.message}" for problem in found.problems
    ]


@pytest.mark.parametrize(
    ("image_keys", "partner_keys"),
    [
        ({"conditioning_data": "lose"}, {}),
        ({"conditioning_data": ["lose"]}, {}),
        ({}, {"source_dataset_id": "win"}),
        ({"conditioning_data": ["lose"]}, {"source_dataset_id": "win"}),
    ],
)
def test_a_link_is_stated_on_either_side_or_both(tmp_path, image_keys, partner_keys):
    blocks = image_set("win", **image_keys), partner_set("lose", "reference_strict", **partner_keys)
    assert linked(tmp_path, *blocks) == ({0: (1,)}, [])


def test_all_linked_sets_apply(tmp_path):
    links, problems = linked(
        tmp_path,
        partner_set("face", "mask"),
        image_set("win", conditioning_data=["face", "lose"]),
        partner_set("lose", "reference_strict", source_dataset_id="win"),
        partner_set("hands", "segmentation", source_dataset_id="win"),
    )
    assert links == {1: (0, 2, 3)} and not problems


def test_an_unknown_id_is_named_with_the_nearest(tmp_path):
    _, problems = linked(
        tmp_path,
        image_set("win", conditioning_data=["lose", "msk"]),
        *(partner_set("lose", "reference_strict"), partner_set("mask", "mask", source_dataset_id="wn")),
    )
    assert problems == [
        "$[0].conditioning_data[1]: no data set has the id 'msk'; did you mean 'mask'?",
        "$[2].source_dataset_id: no data set has the id 'wn'; did you mean 'win'?",
    ]


def test_a_link_to_the_wrong_kind_is_refused(tmp_path):
    _, problems = linked(tmp_path, image_set("win", conditioning_data="other"), image_set("other"))
    assert problems == [
        "$[0].conditioning_data: 'other' is a data set of type 'image'; expected one of type 'conditioning'"
    ]


def test_a_set_that_belongs_to_nothing_is_refused(tmp_path):
    _, problems = linked(tmp_path, image_set("win"), partner_set("lose", "reference_strict"))
    assert problems == [
        "$[1]: 'lose' belongs to no image data set; name it in that set's `conditioning_data`, or name that set in its "
        "`source_dataset_id`"
    ]


def test_contradicting_links_are_refused(tmp_path):
    _, problems = linked(
        tmp_path,
        image_set("win"),
        image_set("more", conditioning_data="lose"),
        partner_set("lose", "reference_strict", source_dataset_id="win"),
    )
    assert len(problems) == 1 and problems[0].startswith("$[2].source_dataset_id: is 'win', but $[1].conditioning_data")


def test_ids_are_unique_and_there_is_an_image_set(tmp_path):
    _, problems = linked(tmp_path, image_set("win"), image_set("win"))
    assert problems == ["$[1].id: 'win' is the id of $[0] too; give each data set its own"]
    _, problems = linked(tmp_path)
    assert len(problems) == 1 and problems[0].startswith("$: has no data set with `dataset_type` 'image'")


def test_a_disabled_set_and_links_to_it_are_left_out(tmp_path):
    win = image_set("win", conditioning_data=["lose", "mask"])
    lose = partner_set("lose", "reference_strict", disabled=True)
    mask = partner_set("mask", "mask")
    assert linked(tmp_path, win, lose, mask) == ({0: (2,)}, [])
    other = image_set("other")
    assert linked(tmp_path, {**win, "disabled": True}, lose, mask, other) == ({3: ()}, [])
    sourced = partner_set("mask", "mask", source_dataset_id="win")
    assert linked(tmp_path, {**win, "disabled": True}, lose, sourced, other) == ({3: ()}, [])


def test_an_image_set_with_a_conditioning_type_has_lost_its_dataset_type(tmp_path):
    lose = image_set("lose", conditioning_type="mask", source_dataset_id="win")
    _, problems = linked(tmp_path, image_set("win"), lose)
    assert [problem.split(":")[0] for problem in problems] == ["$[1].conditioning_type", "$[1].source_dataset_id"]
    assert all("set `dataset_type` to 'conditioning'" in problem for problem in problems)


def test_a_conditioning_set_says_what_it_holds(tmp_path):
    lose = partner_set("lose", "mask", source_dataset_id="win", conditioning_data="win")
    _, problems = linked(tmp_path, image_set("win"), {**lose, "conditioning_type": None})
    assert [problem.split(":")[0] for problem in problems] == ["$[1].conditioning_type", "$[1].conditioning_data"]
