from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diffusers.training_utils import generate_aspect_ratio_buckets
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowhooks.data.geometry import plan_geometry
from flowhooks.data.sizing import Sizing
from flowhooks.data.transform import load_pixels
from flowhooks.errors import ConfigError
from tests.data.folders import TRIPLE, audit_in, image_set, partner_set, problems_in, write_image, write_pairs
from tests.data.moving import write_clip

edges = st.integers(16, 5000)
multiples = st.sampled_from([1, 16, 32, 64])


def sizing(resolution, kind="pixel", aspect="crop", multiple=64, minimum=None):
    return Sizing(resolution=resolution, resolution_type=kind, aspect=aspect, multiple=multiple, minimum=minimum)


@pytest.mark.parametrize(
    ("keys", "image", "expected"),
    [
        ((None,), (30, 20), (30, 20)),
        ((64,), (30, 20), (64, 64)),
        (([96, 64],), (30, 20), (64, 96)),
        ((1000, "pixel_area"), (30, 20), (1024, 1024)),
        ((0.25, "area"), (30, 20), (512, 512)),
        ((1024, "pixel_area", "bucket"), (4000, 3000), (1152, 896)),
        ((1.048576, "area", "bucket"), (3000, 4000), (896, 1152)),
        ((512, "pixel", "bucket"), (4000, 3000), (704, 512)),
        ((512, "pixel", "bucket", 1), (3000, 4000), (512, 683)),
        ((1024, "pixel_area", "bucket"), (9000, 100), (1472, 704)),
        ((1024, "pixel_area", "own"), (4000, 3000), (1152, 896)),
        ((512, "pixel", "own", 16), (3000, 1000), (1536, 512)),
        ((0.25, "area", "own", 1), (100, 400), (250, 1000)),
    ],
)
def test_the_size_an_image_is_trained_at(keys, image, expected):
    assert sizing(*keys).target(*image) == expected


@given(resolution=edges, multiple=multiples)
def test_buckets_of_an_area_are_those_of_diffusers(resolution, multiple):
    theirs = generate_aspect_ratio_buckets(resolution, multiple)
    assert sizing(resolution, "pixel_area", "bucket", multiple).buckets == [(width, height) for height, width in theirs]


@given(width=edges, height=edges, resolution=st.integers(512, 2048), kind=st.sampled_from(["pixel", "pixel_area"]))
def test_a_bucket_is_of_the_nearest_aspect_and_the_size_asked_for(width, height, resolution, kind):
    found = sizing(resolution, kind, "bucket", 16).target(width, height)
    assert not found[0] % 16 and not found[1] % 16
    if kind == "pixel":
        assert min(found) == round(resolution / 16) * 16
    else:
        assert math.prod(found) == pytest.approx(resolution**2, rel=0.05)
    # Between 1:2 and 2:1 the aspects are close enough that little is cut away.
    if 0.5 <= width / height <= 2:
        assert abs(math.log(found[0] / found[1] * height / width)) < 0.15


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"resolution_type": "area"}, "$[0].resolution: is null, the size the images have, but `resolution_type`"),
        ({"aspect": "bucket"}, "$[0].resolution: is null, the size the images have, but `aspect` 'bucket' needs a"),
        ({"resolution": [16, 16], "aspect": "bucket"}, "$[0].resolution: is one size, [16, 16], but `aspect` 'bucket'"),
        ({"resolution": 1.5}, "$[0].resolution: is 1.5, but `resolution_type` 'pixel' counts pixels along an edge"),
        ({"minimum_image_size": 0.5}, "$[0].minimum_image_size: is 0.5, but `resolution_type` 'pixel' counts pixels"),
        ({"resolution": 1024, "resolution_type": "area"}, "$[0].resolution: is 1024 megapixels; for a square of 1024"),
        ({"aspect": "own"}, "$[0].resolution: is null, the size the images have, but `aspect` 'own' needs a number"),
        ({"crop_scale": "original"}, "$[0].resolution: is null, the size the images have, but `crop_scale` needs a"),
        ({"resolution": 16, "maximum_image_size": 32}, "$[0].maximum_image_size: has no effect without `crop_scale`"),
        (
            {"resolution": 16, "crop_scale": "original", "target_downsample_size": 32},
            "$[0].target_downsample_size: has no effect without `maximum_image_size`; write both, or neither",
        ),
        (
            {"resolution": 8, "crop_scale": "original", "maximum_image_size": 16, "target_downsample_size": 32},
            "$[0].target_downsample_size: 32 is above `maximum_image_size` 16",
        ),
        ({"resolution": 16, "aspects": [1, 2]}, "$[0].aspects: has no effect unless `aspect` is 'bucket' or 'random'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path, keys, said):
    write_pairs(tmp_path, "ab")
    (problem,) = problems_in(tmp_path, [image_set("win", **keys)])
    assert problem.startswith(said)


def test_shapes_are_those_that_the_set_lists_and_a_random_one_is_an_image_s_own():
    keys = {"resolution": 100, "resolution_type": "pixel_area", "multiple": 1, "minimum": None}
    listed = Sizing(aspect="bucket", aspects=((1.0, 1.0), (0.25, 1.0)), **keys)
    assert [listed.target(*size) for size in [(30, 20), (10, 30), (30, 10)]] == [(100, 100), (50, 200), (100, 100)]
    drawn = Sizing(aspect="random", aspects=((1.0, 1.0), (0.25, 1.0)), **keys)
    shapes = [drawn.target(30, 20, f"{i}") for i in range(40)]
    assert set(shapes) == {(100, 100), (50, 200)} and shapes == [drawn.target(30, 20, f"{i}") for i in range(40)]


@pytest.mark.parametrize(
    ("keys", "size", "expected"),
    [
        ({}, (40, 20), 0.0),
        ({"crop_scale": "original"}, (40, 20), 1.0),
        ({"crop_scale": "original", "maximum": 24, "shrunk": 16}, (40, 24), 1.0),
        ({"crop_scale": "original", "maximum": 24, "shrunk": 16}, (64, 32), 0.5),
        ({"crop_scale": "original", "maximum": 24, "shrunk": 16, "resolution_type": "pixel_area"}, (64, 16), 0.5),
        ({"crop_scale": "original", "maximum": 2.0, "shrunk": 1.0, "resolution_type": "area"}, (2000, 2000), 0.5),
    ],
)
def test_what_an_image_is_shrunk_to_before_a_part_is_cut_out(keys, size, expected):
    found = Sizing(
        **{"resolution": 8, "resolution_type": "pixel", "aspect": "crop", "multiple": 1, "minimum": None, **keys}
    )
    assert found.scale(*size) == pytest.approx(expected)


@pytest.mark.parametrize("crop", ["center", "corner", "random"])
def test_a_part_at_its_own_scale_has_the_pixels_of_the_file(tmp_path, crop):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cut = plan_geometry(40, 20, (8, 8), crop, "a", scale=1.0)
    left, top, right, bottom = map(round, cut.pixels(40, 20))
    assert (right - left, bottom - top) == (8, 8)
    assert {"center": (16, 6), "corner": (0, 0)}.get(crop, (left, top)) == (left, top)
    found = load_pixels((tmp_path / "a.png").read_bytes(), cut)
    expected = pixels[top:bottom, left:right].transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
    np.testing.assert_array_equal(found, expected)


def test_an_image_above_the_maximum_is_shrunk_and_then_cut(tmp_path):
    """The part is what it would be of an image that was halved beforehand; a smaller image is cut as it is."""
    for name, size in (("large", (64, 64)), ("medium", (32, 32))):
        write_image(tmp_path / "win" / f"{name}.png", size, 1)
        (tmp_path / "win" / f"{name}.txt").write_text("x")
    keys = {"resolution": 16, "crop_scale": "original", "maximum_image_size": 48, "target_downsample_size": 32}
    cuts = {each.key: each.geometry for each in audit_in(tmp_path, [image_set("win", **keys)]).records}
    assert {key: cut.size for key, cut in cuts.items()} == dict.fromkeys(cuts, (16, 16, 1))
    assert cuts["large"].pixels(64, 64) == (16, 16, 48, 48) and cuts["medium"].pixels(32, 32) == (8, 8, 24, 24)


def test_images_keep_their_aspect_in_buckets_and_share_the_box_with_their_partners(tmp_path):
    for seed, (name, size) in enumerate({"a": (64, 64), "b": (96, 66), "c": (66, 98)}.items()):
        for folder in ("win", "lose", "mask"):
            write_image(tmp_path / folder / f"{name}.png", size, seed)
        (tmp_path / "win" / f"{name}.txt").write_text(name)
    win, *partners = TRIPLE
    found = audit_in(tmp_path, [{**win, "resolution": 32, "aspect": "bucket", "resolution_multiple": 16}, *partners])
    assert {record.key: record.bucket for record in found.records} == {
        "a": (32, 32, 1),
        "b": (48, 32, 1),
        "c": (32, 48, 1),
    }
    assert found.buckets == {(32, 32, 1): 1, (32, 48, 1): 1, (48, 32, 1): 1}


def test_small_images_are_an_error_or_left_out_by_name(tmp_path):
    """`b` is below the minimum, `c` has a rejected side that would be enlarged."""
    for name, size in {"a": (32, 32), "b": (16, 32), "c": (32, 32)}.items():
        write_image(tmp_path / "win" / f"{name}.png", size, ord(name))
        write_image(tmp_path / "lose" / f"{name}.png", (24, 24) if name == "c" else size, ord(name) + 10)
        (tmp_path / "win" / f"{name}.txt").write_text(name)
    partner = partner_set("lose", "reference_strict", source_dataset_id="win")
    keys = {"resolution": 32, "minimum_image_size": 20}
    below, small = problems_in(tmp_path, [image_set("win", **keys), partner])
    assert below.startswith("$[0].minimum_image_size: images smaller than `minimum_image_size` (1): b (16x32)")
    assert small.startswith("$[0].resolution: files smaller than what is trained (1): c of 'lose' (24x24, needed")
    found = audit_in(tmp_path, [image_set("win", small_images="leave_out", **keys), partner])
    assert [record.key for record in found.records] == ["a"]
    assert "win: 1 image left out, images smaller than `minimum_image_size`: b (16x32)" in found.report
    assert any("1 image left out, files smaller than what is trained: c of 'lose'" in each for each in found.report)
    assert not found.warnings
    larger = image_set("win", small_images="leave_out", **{**keys, "resolution": 64})
    (problem,) = problems_in(tmp_path, [larger, partner])
    assert problem.startswith("$[0].small_images: leaves out every image")


NUMBERS = st.one_of(
    st.integers(4, 40),
    st.floats(0.0001, 0.003),
    st.sampled_from([0, -1, 0.5, math.inf, math.nan, 1e308, 10**400, True]),
)
BLOCKS = st.fixed_dictionaries(
    {},
    optional={
        "resolution": st.one_of(st.none(), NUMBERS, st.lists(NUMBERS, max_size=3)),
        "resolution_type": st.sampled_from(["pixel", "area", "pixel_area"]),
        "aspect": st.sampled_from(["crop", "bucket", "own", "random", None]),
        "aspects": st.sampled_from([None, None, [1, 0.5], [], [0]]),
        "crop_scale": st.sampled_from(["whole", "original"]),
        "maximum_image_size": st.sampled_from([None, 30, 0.002]),
        "target_downsample_size": st.sampled_from([None, 20, 0.001]),
        "resolution_multiple": st.integers(0, 24),
        "minimum_image_size": st.one_of(st.none(), st.just(8), NUMBERS),
        "small_images": st.sampled_from(["leave_out", "leave_out", "error"]),
        "allow_upscale": st.booleans(),
        "crop": st.sampled_from(["center", "random", "corner"]),
        "num_frames": st.sampled_from([0, 1, 4, 4, 4, 5, 6]),
        "frame_selection": st.sampled_from(["first", "center", "random", "uniform"]),
    },
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Iterator[Path]:
    """Pictures and clips of several shapes, with a rejected side that is a little smaller."""
    root = tmp_path_factory.mktemp("mixed")
    for i, size in enumerate([(64, 64), (90, 60), (30, 60), (7, 70)]):
        write_image(root / "win" / f"still{i}.png", size, i)
        write_image(root / "lose" / f"still{i}.png", (size[0], size[1]), i + 10)
        write_clip(root / "moving" / f"clip{i}.webp", 4 + i, size, i)
    yield root


@given(keys=BLOCKS, folder=st.sampled_from(["win", "moving"]), paired=st.booleans())
def test_any_keys_give_a_sound_plan_or_clear_problems_and_no_image_is_lost_untold(mixed, keys, folder, paired):
    blocks = [image_set("a", instance_data_dir=folder, caption_strategy="filename", **keys)]
    if paired and folder == "win":
        blocks.append(partner_set("lose", "reference_strict", source_dataset_id="a"))
    try:
        found = audit_in(mixed, blocks)
    except ConfigError as error:
        assert all(problem.file and problem.message for problem in error.problems)
        return
    assert found.records and sum(found.buckets.values()) == len(found.records)
    told = "\n".join(found.report)
    left = {path.stem for path in (mixed / folder).iterdir()} - {record.key for record in found.records}
    assert all(name in told for name in left)
    for record in found.records:
        left_edge, top, right, bottom = record.geometry.box
        assert 0 <= left_edge < right <= 1 + 1e-9 and 0 <= top < bottom <= 1 + 1e-9
        assert record.geometry.frames == keys.get("num_frames", 1)
        assert all(0 <= position < record.image.frames for position in record.geometry.shown)
        if not keys.get("allow_upscale"):
            assert not record.geometry.enlarges(record.image.width, record.image.height)
