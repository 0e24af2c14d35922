"""Partners that may be missing, or of another shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flowhooks.data.transform import load_pixels
from tests.data.folders import audit_in, image_set, partner_set, problems_in, write_image, write_pairs

NAMES = ("a", "b", "c")
LOOSE = (
    image_set("win", conditioning_data=["lose", "mask"]),
    partner_set("lose", "reference_loose"),
    partner_set("mask", "mask"),
)


@pytest.fixture
def root(tmp_path):
    write_pairs(tmp_path, NAMES)
    return tmp_path


def test_images_without_a_partner_are_left_out_and_named(root):
    (root / "lose/b.png").unlink()
    result = audit_in(root, LOOSE)
    assert [record.key for record in result.records] == ["a", "c"] and result.provides == {"image", "rejected", "mask"}
    assert "win: 1 image without a partner in 'lose', left out of its pairs: b" in result.report


def test_a_partner_of_another_shape_is_cut_by_a_box_of_its_own(root):
    write_image(root / "lose/a.png", (40, 20), seed=70)
    record = audit_in(root, LOOSE).records[0]
    assert record.geometry.box == (0, 0, 1, 1) and record.rejected_geometry.size == record.geometry.size
    (_, whole), (rejected, own) = record.sides
    assert whole == record.geometry and own.pixels(40, 20) == pytest.approx((10, 0, 30, 20))
    with Image.open(root / "lose/a.png") as image:
        middle = image.resize((16, 16), Image.Resampling.LANCZOS, box=(10, 0, 30, 20))
    expected = np.asarray(middle, np.float32).transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(load_pixels(rejected.asset.read(), own), expected, atol=1e-6)


def test_beside_a_strict_set_only_the_loose_pair_is_left_out(root):
    for name in NAMES:
        write_image(root / f"worse/{name}.png", seed=90)
    (root / "lose/b.png").unlink()
    both = [
        {**LOOSE[0], "conditioning_data": ["lose", "worse"]},
        LOOSE[1],
        partner_set("worse", "reference_strict"),
    ]
    pairs = [(record.key, record.rejected.asset.path.parent.name) for record in audit_in(root, both).records]
    assert pairs == [("a", "lose"), ("a", "worse"), ("b", "worse"), ("c", "lose"), ("c", "worse")]


def test_no_partner_at_all_is_a_problem(root):
    for name in NAMES:
        (root / f"lose/{name}.png").rename(root / f"lose/{name.upper()}.png")
    (problem,) = problems_in(root, LOOSE)
    assert "none of the 3 images of 'win' has a partner in 'lose'" in problem


def test_a_partner_that_cannot_be_used_is_a_problem_all_the_same(root):
    (root / "lose/a.png").write_bytes(b"")
    (problem,) = problems_in(root, LOOSE)
    assert "files that cannot be used (1): a.png is empty" in problem


def test_a_partner_too_small_is_a_problem_or_left_out(root):
    write_image(root / "lose/a.png", (40, 8), seed=70)
    (problem,) = problems_in(root, LOOSE)
    assert "files smaller than what is trained (1): a of 'lose' (40x8, needed for 16x16)" in problem
    result = audit_in(root, [{**LOOSE[0], "small_images": "leave_out"}, *LOOSE[1:]])
    assert [record.key for record in result.records] == ["b", "c"]
    assert any("1 pair left out" in line for line in result.report)
