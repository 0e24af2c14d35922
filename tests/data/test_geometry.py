from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowhooks.data.geometry import plan_geometry

edges = st.integers(1, 5000)
crops = st.sampled_from(["center", "random", "corner"])


@given(width=edges, height=edges, target=st.tuples(edges, edges), crop=crops, key=st.text(max_size=8))
def test_the_box_lies_inside_and_has_the_target_s_aspect(width, height, target, crop, key):
    geometry = plan_geometry(width, height, target, crop, key)
    left, top, right, bottom = geometry.pixels(width, height)
    slack = 1e-6 * max(width, height)
    assert -slack <= left < right <= width + slack
    assert -slack <= top < bottom <= height + slack
    assert (right - left) * target[1] == pytest.approx((bottom - top) * target[0])
    assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)


def test_a_random_crop_depends_on_the_key_alone():
    boxes = {key: plan_geometry(300, 100, (100, 100), "random", key).box for key in ("a", "b", "c", "d")}
    assert len(set(boxes.values())) > 1
    assert boxes["a"] == plan_geometry(300, 100, (100, 100), "random", "a").box


def test_a_center_crop_is_in_the_middle():
    assert plan_geometry(300, 100, (100, 100), "center", "a").pixels(300, 100) == pytest.approx((100, 0, 200, 100))


def test_a_corner_crop_is_the_upper_left_one():
    assert plan_geometry(300, 100, (100, 100), "corner", "a").pixels(300, 100) == pytest.approx((0, 0, 100, 100))


def test_what_would_be_enlarged():
    geometry = plan_geometry(100, 100, (64, 64), "center", "a")
    assert not geometry.enlarges(64, 64)
    assert not geometry.enlarges(200, 200)
    assert geometry.enlarges(63, 63)
