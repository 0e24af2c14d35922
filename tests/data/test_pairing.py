"""The audit on real folders: what it accepts, and one clear problem for each fault."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from flowhooks.data import audit
from flowhooks.data.schedule import Schedule, streams
from flowhooks.errors import DataError
from tests.data.folders import (
    PAIR,
    TRIPLE,
    audit_in,
    image_set,
    load,
    partner_set,
    problems_in,
    write_image,
    write_mask,
    write_pairs,
)

NAMES = ("a", "b", "sub/c")


@pytest.fixture
def root(tmp_path):
    write_pairs(tmp_path, NAMES)
    return tmp_path


def test_a_sound_pairing_is_counted_and_reported(root):
    result = audit_in(root, TRIPLE)
    assert result.counts == {"samples": 3, "images": 3, "rejected": 3, "masks": 3, "captions": 3}
    assert result.provides == {"image", "rejected", "mask"}
    assert result.warnings == ()
    assert result.report[0] == "win: 3 images, 3 reference_strict from 'lose', 3 mask from 'mask'; captions by textfile"
    assert [record.key for record in result.records] == list(NAMES)
    record = result.records[2]
    assert record.caption == "a photo of sub/c" and (record.width, record.height) == (16, 16)
    assert record.image.asset.path == root / "win/sub/c.png"
    assert record.rejected.asset.path == root / "lose/sub/c.png"
    assert [mask.asset.path for mask in record.masks] == [root / "mask/sub/c.png"]


def test_pairs_match_by_stem_whatever_the_suffix(root):
    (root / "lose/a.png").unlink()
    write_image(root / "lose/a.JPG", seed=9)
    assert audit_in(root, PAIR).records[0].rejected.asset.path == root / "lose/a.JPG"


def test_several_rejected_sets_give_a_record_each_and_all_masks_apply(root):
    for name in NAMES:
        write_image(root / "worse" / f"{name}.png", seed=50)
        write_mask(root / "zone" / f"{name}.png", np.full((16, 16), 128))
    result = audit_in(
        root,
        [
            image_set("win", conditioning_data=["lose", "mask", "zone"]),
            partner_set("lose", "reference_strict"),
            partner_set("worse", "reference_strict", source_dataset_id="win"),
            partner_set("mask", "mask"),
            partner_set("zone", "segmentation"),
        ],
    )
    assert [
        (record.key, record.rejected.asset.path.parts[-len(record.key.split("/")) - 1]) for record in result.records
    ] == [(name, rejected) for name in NAMES for rejected in ("lose", "worse")]
    assert all(
        [mask.asset.path for mask in record.masks] == [root / f"mask/{record.key}.png", root / f"zone/{record.key}.png"]
        for record in result.records
    )


def test_repeats_are_additional_rounds(root):
    result = audit_in(root, [image_set("win", repeats=2)])
    assert result.counts["samples"] == 9 and result.counts["images"] == 3
    assert result.provides == {"image"}


def test_the_audit_loads_no_torch(root):
    load(root, TRIPLE)
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.data.folders import audit_in, TRIPLE\n"
        f"audit_in(Path({str(root)!r}), TRIPLE)\nassert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_partners_are_named_up_to_twenty_with_the_total(tmp_path):
    write_pairs(tmp_path, [f"{i:02d}" for i in range(30)])
    for i in range(5, 30):
        (tmp_path / f"lose/{i:02d}.png").unlink()
    (problem,) = problems_in(tmp_path, PAIR)
    assert problem.startswith("$[1].instance_data_dir: 25 of 30 images of 'win' have no partner in 'lose': 05, 06, ")
    assert "24 and 5 more;" in problem and "25" not in problem.split("'lose': ")[1]


def test_a_partner_in_another_case_is_pointed_at(root):
    (root / "lose/a.png").rename(root / "lose/A.png")
    (problem,) = problems_in(root, PAIR)
    assert "1 of 3 images" in problem and "('A' is there, 'a' is not)" in problem


def test_partners_that_no_image_asks_for_are_a_warning(root):
    write_image(root / "lose/extra.png", seed=77)
    result = audit_in(root, PAIR)
    assert result.warnings == ("lose: 1 file without an image: extra",)
    assert len(result.records) == 3


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "is empty (0 bytes)"),
        (lambda data: b"some text", "is not a PNG"),
        (lambda data: data[: len(data) // 2], "damaged"),
    ],
)
@pytest.mark.parametrize(("folder", "path"), [("win", "$[0]"), ("lose", "$[1]"), ("mask", "$[2]")])
def test_an_unusable_file_is_one_problem_at_its_set(root, damage, said, folder, path):
    file = root / folder / "a.png"
    file.write_bytes(damage(file.read_bytes()))
    (problem,) = problems_in(root, TRIPLE)
    assert problem.startswith(f"{path}.instance_data_dir: files that cannot be used (1): a.png") and said in problem


@pytest.mark.parametrize("folder", ["lose", "mask"])
def test_a_partner_of_another_aspect_is_refused(root, folder):
    write_image(root / folder / "a.png", (16, 24))
    (problem,) = problems_in(root, TRIPLE)
    assert "partners of another aspect ratio than their image (1): a (16x16 image, 16x24 partner)" in problem


def test_a_partner_of_another_size_is_noted(root):
    write_image(root / "lose/a.png", (32, 32), seed=40)
    write_mask(root / "mask/a.png", np.zeros((8, 8)))
    assert "lose: 1 file of another size than the image; resized to fit" in audit_in(root, TRIPLE).report


def test_one_per_cent_of_aspect_is_forgiven(tmp_path):
    write_image(tmp_path / "win/a.png", (1000, 500))
    write_image(tmp_path / "lose/a.png", (1000, 504), seed=1)
    blocks = [
        image_set("win", conditioning_data="lose", caption_strategy="filename"),
        partner_set("lose", "reference_strict"),
    ]
    assert len(audit_in(tmp_path, blocks).records) == 1
    write_image(tmp_path / "lose/a.png", (1000, 506), seed=1)
    assert len(problems_in(tmp_path, blocks)) == 1


def test_one_stem_twice_is_ambiguous(root):
    write_image(root / "lose/a.jpg")
    (problem,) = problems_in(root, PAIR)
    assert problem.startswith("$[1].instance_data_dir: several files of one name") and "a.jpg and a.png" in problem


def test_copies_are_noted(root):
    (root / "win/copy.txt").write_text("a copy")
    (root / "win/copy.png").write_bytes((root / "win/a.png").read_bytes())
    assert "win: 1 file with the content of another: copy = a" in audit_in(root, [image_set("win")]).report


def test_a_missing_and_an_empty_folder(root):
    (root / "lose-nothing").mkdir()
    (root / "lose-nothing/a.psd").write_bytes(b"8BPS")
    blocks = [
        image_set("win"),
        partner_set("gone", "reference_strict", source_dataset_id="win"),
        partner_set("lose-nothing", "reference_strict", source_dataset_id="win"),
        partner_set("file", "mask", source_dataset_id="win", instance_data_dir="win/a.png"),
    ]
    gone, nothing, file = problems_in(root, blocks)
    assert gone == (
        f"$[1].instance_data_dir: {root}/gone does not exist; `instance_data_dir` is relative to the data set file"
    )
    assert nothing.startswith("$[2].instance_data_dir:") and "holds no image" in nothing
    assert "it holds .psd (1) instead" in nothing
    assert "is a file, not a folder" in file


def test_a_folder_that_another_type_reads_is_told_that_type(tmp_path):
    for named in ("a.parquet", "b/x.tar"):
        (tmp_path / named).parent.mkdir(exist_ok=True)
        (tmp_path / named).write_bytes(b"x")
    write_image(tmp_path / "c/a.png", (16, 16))
    (tmp_path / "c/metadata.jsonl").write_text("{}")
    blocks = [{"id": each[0], "instance_data_dir": each} for each in ("a.parquet", "b", "c")]
    table, shards, listed = problems_in(tmp_path, blocks)
    assert "a.parquet is a file, not a folder; set `type` to 'parquet'" in table
    assert "it holds .tar (1) instead; set `type` to 'webdataset', put images there" in shards
    assert "or `type` to 'imagefolder', which takes them from metadata.jsonl" in listed


def test_links_out_of_the_folder_are_refused_by_name(root):
    outside = write_image(root / "elsewhere/a.png", seed=30)
    (root / "win/z.png").symlink_to(outside)
    (problem,) = problems_in(root, [image_set("win")])
    assert "z.png is a symbolic link to" in problem and "outside" in problem


def test_captions_that_are_missing_empty_or_not_text(root):
    (root / "win/a.txt").unlink()
    (root / "win/b.txt").write_text(" \n")
    (root / "win/sub/c.txt").write_bytes("grün".encode("latin-1"))
    missing, empty, broken = problems_in(root, [image_set("win")])
    assert missing.startswith("$[0].caption_strategy: missing caption files (1): a.txt; write the captions")
    assert "empty captions (1): b.txt;" in empty
    assert "sub/c.txt (byte 2 is 0xfc)" in broken


def test_caption_strategies(root):
    write_image(root / "names/a_red_bird.png")
    assert audit_in(root, [image_set("names", caption_strategy="filename")]).captions == ("a red bird",)
    prompt = image_set("win", caption_strategy="instanceprompt", instance_prompt="a photo of xyz")
    assert audit_in(root, [prompt]).captions == ("a photo of xyz",)
    (problem,) = problems_in(root, [{**prompt, "instance_prompt": " "}])
    assert problem.startswith("$[0].instance_prompt: is empty")
    (root / "win/a.txt").write_text("﻿grün \n", encoding="utf-8")
    assert audit_in(root, [image_set("win")]).records[0].caption == "grün"


def test_nothing_is_enlarged_unasked(root):
    blocks = [{**PAIR[0], "resolution": 32}, PAIR[1]]
    (problem,) = problems_in(root, blocks)
    assert (
        problem.startswith("$[0].resolution: files smaller than what is trained (6): ")
        and "a of 'win' (16x16, needed for 32x32)" in problem
    )
    allowed = audit_in(root, [{**blocks[0], "allow_upscale": True}, PAIR[1]])
    assert {(record.width, record.height) for record in allowed.records} == {(32, 32)}


def test_a_rejected_image_smaller_than_training_is_refused(root):
    write_image(root / "lose/a.png", (8, 8), seed=60)
    (problem,) = problems_in(root, PAIR)
    assert "a of 'lose' (8x8, needed for 16x16)" in problem


def test_resolution_as_height_and_width(root):
    record = audit_in(root, [image_set("win", resolution=[8, 16])]).records[0]
    assert (record.width, record.height) == (16, 8)


def test_samples_of_several_sizes_are_several_buckets(root):
    write_image(root / "win/wide.png", (32, 16), seed=70)
    (root / "win/wide.txt").write_text("wide")
    found = audit_in(root, [image_set("win")])
    assert [record.bucket for record in found.records if record.key in ("a", "wide")] == [(16, 16, 1), (32, 16, 1)]


def test_two_image_sets_may_differ_in_what_they_have(root):
    write_image(root / "plain/d.png", seed=80)
    blocks = [*TRIPLE, image_set("plain", caption_strategy="filename")]
    result = audit_in(root, blocks)
    assert result.provides == {"image", "mask"}
    assert result.warnings == (
        "1 of 4 samples have no rejected side, those of 'plain', so none is offered to hooks; give every image set "
        "one, or train those sets in a run of their own",
        "1 of 4 samples have no mask; they train everywhere",
    )


def test_the_report_says_what_is_drawn_of_each_set(root):
    """Shares are of samples: three of `win`, of weight 1, beside six of `lose`, of weight 2."""
    other = image_set("lose", caption_strategy="filename", repeats=1, probability=2)
    drawn = [line for line in audit_in(root, [image_set("win"), other]).report if line.startswith("drawn")]
    assert drawn == ["drawn: win 20.0%, lose 80.0%"]
    lines = audit_in(root, [image_set("win", end_step=9), {**other, "start_step": 5}]).report
    assert [line for line in lines if line.startswith("drawn")] == [
        "drawn from step 0 to 5: win 100.0%",
        "drawn from step 5 to 9: win 20.0%, lose 80.0%",
        "drawn from step 9: lose 100.0%",
    ]
    assert not any(line.startswith("drawn") for line in audit_in(root, PAIR).report)


def test_all_problems_come_at_once(root):
    (root / "win/a.txt").unlink()
    (root / "lose/b.png").unlink()
    (root / "mask/sub/c.png").write_bytes(b"")
    problems = problems_in(root, [*TRIPLE, image_set("gone")])
    assert sorted(problem.split(":")[0] for problem in problems) == [
        "$[0].caption_strategy",
        "$[1].instance_data_dir",
        "$[2].instance_data_dir",
        "$[3].instance_data_dir",
    ]


def test_a_file_name_without_words_is_no_caption(tmp_path):
    for i, name in enumerate(("_", " ", "a_cat")):
        write_image(tmp_path / f"win/{name}.png", seed=i)
    (problem,) = problems_in(tmp_path, [image_set("win", caption_strategy="filename")])
    assert problem.startswith("$[0].caption_strategy: file names that make an empty caption (2): ' ', '_';")


def test_an_embedded_set_that_does_not_exist(root):
    (problem,) = problems_in(root, [image_set("win", instance_data_dir="digits:prefered")])
    assert problem.startswith("$[0].instance_data_dir:") and "digits:preferred" in problem


def test_the_error_exits_with_two(root):
    with pytest.raises(DataError) as caught:
        audit(load(root, [image_set("gone")]))
    assert caught.value.exit_code == 2


def test_a_disabled_set_is_not_even_looked_at(root):
    blocks = [*TRIPLE[:2], {**TRIPLE[2], "disabled": True, "instance_data_dir": "gone"}]
    assert audit_in(root, blocks).provides == {"image", "rejected"}


def test_paths_lead_into_the_file_as_the_user_wrote_it(root):
    off = image_set("off", disabled=True)
    assert problems_in(root, [off, image_set("gone")])[0].startswith("$[1].instance_data_dir: ")
    assert problems_in(root, {"datasets": [off, image_set("gone")]})[0].startswith("$.datasets[1].instance_data_dir: ")


def test_pairs_of_one_file_are_told(root):
    """Whatever they are called, and however often a sample comes; nothing is decoded for it."""
    (root / "lose/a.png").write_bytes((root / "win/a.png").read_bytes())
    (warning,) = audit_in(root, [{**PAIR[0], "repeats": 2}, PAIR[1]]).warnings
    assert warning.startswith("win: both sides are the same file (1 of 3 pairs): a; such a pair teaches nothing")


@pytest.mark.parametrize("key", ["repeats", "keep_tags", "start_step", "end_step", "num_frames", "caption_variants"])
@pytest.mark.parametrize("number", [10**9, 10**12])
def test_no_number_costs_memory_or_time(root, key, number):
    """It is taken, or refused by name."""
    block = image_set("win", caption_shuffle=True, **{key: number})
    other = image_set("more", instance_data_dir="win")
    try:
        result = audit_in(root, [block, other])
    except DataError as error:
        assert {problem.path for problem in error.problems} == {f"$[0].{key}"}
    else:
        assert key in ("keep_tags", "start_step", "end_step") and len(result.records) == 6
        schedule = Schedule(streams(result.records), batch_size=2, seed=0)
        assert len(next(schedule.batches(start=100))) == 2


def test_an_epoch_too_long_to_list_is_refused(root, monkeypatch):
    monkeypatch.setattr("flowhooks.data.pairing.MOST_SAMPLES", 8)
    assert len(audit_in(root, [image_set("win", repeats=1)]).records) == 6
    (problem,) = problems_in(root, [image_set("win", repeats=2)])
    assert problem.startswith("$[0].repeats: 2 makes 9 samples of 3, and an epoch with repeats holds at most 8; lower")
    blocks = [image_set("win", repeats=1), {**image_set("win", repeats=1), "id": "again"}]
    (problem,) = problems_in(root, blocks)
    assert problem.startswith("$[1].repeats: 1 makes 6 samples of 3 beside 6 of other sets, and an epoch")


def test_a_set_that_is_off_is_told_as_that(root):
    with pytest.raises(DataError, match="no data set to train on: `disabled` is true for 'win'; set it to false"):
        load(root, [image_set("win", disabled=True)])


def test_names_of_two_unicode_forms_are_told_apart(root):
    for folder, name in (("win", "caf\u00e9"), ("lose", "cafe\u0301")):
        write_image(root / folder / f"{name}.png", seed=70)
    (root / "win/caf\u00e9.txt").write_text("a cafe")
    (problem,) = problems_in(root, PAIR)
    assert "differs in its Unicode form only" in problem and "such as NFC" in problem


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_tables_and_captions_in_utf16_are_told(root, encoding):
    (root / "t.csv").write_text("image,caption\nwin/a.png,a\n", encoding=encoding)
    (problem,) = problems_in(root, [{"id": "t", "type": "csv", "instance_data_dir": "t.csv"}])
    assert "t.csv is UTF-16; save the file as UTF-8" in problem and "udc" not in problem
    (root / "win/a.txt").write_text("a photo", encoding=encoding)
    (problem,) = problems_in(root, PAIR)
    assert "a.txt (it is UTF-16); save them as UTF-8" in problem
