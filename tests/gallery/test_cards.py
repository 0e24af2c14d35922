"""Which samples become cards, what is said of them, and which are shown."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flowhooks.data import survey
from flowhooks.gallery.cards import Card, all_cards, chosen
from flowhooks.gallery.originals import edge_for, originals
from flowhooks.gallery.thumbs import VEIL, draw, is_grey, overlay, weights_in_words
from tests.data.folders import TRIPLE, image_set, load, write_image, write_mask, write_pairs
from tests.data.sources.kept import KEEPERS, samples


@pytest.fixture
def root(tmp_path):
    write_pairs(tmp_path, ("a", "b", "sub/c"), (24, 16))
    return tmp_path


def cards(root, blocks) -> dict[str, Card]:
    return {card.key: card for card in all_cards(survey(load(root, blocks)))}


@pytest.mark.parametrize("shape", KEEPERS)
def test_every_source_has_cards(shape, tmp_path):
    """Five whole samples, and one whose rejected side is damaged."""
    kept = samples("abcdef")
    kept[3] = replace(kept[3], rejected=b"no picture")
    found = list(cards(tmp_path, KEEPERS[shape](tmp_path, kept)).values())
    assert [card.state for card in found] == ["fine"] * 5 + ["problem"]
    assert all(card.paired and card.masks and card.caption and card.image for card in found)
    assert [bool(card.rejected) for card in found] == [True] * 5 + [False]
    assert found[-1].problems[0].startswith("the file in 'lose'" if shape == "local" else "the file in 'win.")
    assert all(draw(card).image is not None and draw(card).mask is not None for card in found)


def test_a_sample_that_comes_several_times_is_one_card(root):
    found = cards(root, [image_set("win", repeats=2, resolution=[8, 16])])
    assert list(found) == ["a", "b", "sub/c"]
    assert all((card.times, card.bucket, card.state) == (3, "16x8", "fine") for card in found.values())


def test_every_fault_is_on_the_card_it_concerns(root):
    for i, name in enumerate("defghi"):
        write_image(root / f"win/{name}.png", (24, 16), 50 + i)
        write_image(root / f"lose/{name}.png", (24, 16), 60 + i)
        write_mask(root / f"mask/{name}.png", np.full((16, 24), 255))
        (root / f"win/{name}.txt").write_text(name)
    (root / "win/a.txt").unlink()
    (root / "lose/a.png").unlink()
    (root / "win/b.png").write_bytes(b"")
    (root / "mask/d.png").write_bytes(b"no")
    write_image(root / "lose/e.png", (16, 24))
    write_image(root / "win/f.png", (12, 8))
    shutil.copy(root / "win/g.png", root / "lose/g.png")
    shutil.copy(root / "win/g.png", root / "win/h.png")
    found = cards(root, [{**TRIPLE[0], "resolution": [16, 24]}, *TRIPLE[1:]])
    assert {key: card.problems for key, card in found.items() if card.problems} == {
        "a": ("no caption", "no partner in 'lose'"),
        "b": ("the file cannot be used",),
        "d": ("the file in 'mask' cannot be used",),
        "e": (
            "16x24 is smaller than what is trained",
            "the rejected side (16x24) has another aspect ratio than the image (24x16)",
        ),
        "f": ("12x8 is smaller than what is trained",),
    }
    assert {key: card.warnings for key, card in found.items() if card.warnings} == {
        "g": ("both sides are the same file",),
        "h": ("the same image as g",),
    }
    assert found["a"].image is not None and found["a"].rejected is None and found["a"].paired
    assert found["b"].image is None and found["b"].rejected is not None and found["b"].caption is None
    assert found["d"].masks == () and found["d"].times == 0


def test_small_images_are_a_problem_or_left_out(root):
    write_image(root / "win/a.png", (12, 8))
    small = {**TRIPLE[0], "resolution": [16, 24]}
    assert cards(root, [{**small, "minimum_image_size": 10}, *TRIPLE[1:]])["a"].problems == (
        "12x8 is below `minimum_image_size`",
    )
    left = cards(root, [{**small, "small_images": "leave_out"}, *TRIPLE[1:]])["a"]
    assert (left.times, left.problems, left.warnings) == (0, (), ("left out: smaller than what is trained",))
    unsized = cards(root, [{**TRIPLE[0], "aspect": "bucket"}, *TRIPLE[1:]])
    assert {card.problems for card in unsized.values()} == {("has no size to be trained at",)}
    assert draw(unsized["b"]).image.size == (24, 16)


def test_problems_come_first_and_the_rest_is_drawn_by_the_seed():
    def card(key: int, **told) -> Card:
        return Card(key=str(key), dataset="d", image=None, caption="", **told)

    bad, odd = card(90, problems=("p",)), card(50, warnings=("w",))
    every = [bad if i == 90 else odd if i == 50 else card(i) for i in range(100)]
    shown = chosen(every, 12, seed=3)
    assert shown[:2] == [bad, odd] and len(shown) == 12
    assert [int(each.key) for each in shown[2:]] == sorted(int(each.key) for each in shown[2:])
    assert chosen(every, 12, seed=3) == shown != chosen(every, 12, seed=4)
    assert chosen(every, 1, seed=0) == [bad] and len(chosen(every, 500, seed=0)) == 100


def test_thumbs_show_what_is_trained_on(root):
    """The middle of a wide picture, at half the size; Lanczos lets a little of what is beside it in."""
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:, 4:20] = (255, 0, 0)
    write_mask(root / "win/a.png", pixels)
    write_mask(root / "lose/a.png", 255 - pixels)
    left = np.zeros((16, 24))
    left[:, :12] = 255
    write_mask(root / "mask/a.png", left)
    card = cards(root, [{**TRIPLE[0], "resolution": 16}, *TRIPLE[1:]])["a"]
    thumbs = draw(card, side=8)
    assert thumbs.image.size == thumbs.rejected.size == thumbs.mask.size == (8, 8)
    assert np.abs(np.asarray(thumbs.image).astype(int) - [255, 0, 0]).max() < 20
    assert np.abs(np.asarray(thumbs.rejected).astype(int) - [0, 255, 255]).max() < 20
    assert (np.asarray(thumbs.mask) == [[255] * 4 + [0] * 4] * 8).all()


def test_a_black_mask_a_white_one_and_a_picture_that_cannot_be_decoded_are_told(root):
    write_mask(root / "mask/a.png", np.zeros((16, 24)))
    write_mask(root / "mask/b.png", np.full((16, 24), 255))
    found = cards(root, TRIPLE)
    white = draw(found["b"])
    assert white.everywhere and white.mask is None and white.warnings == ()
    assert draw(found["a"]).warnings == ("the mask is black: it trains nowhere",)
    (root / "lose/b.png").write_bytes((root / "lose/b.png").read_bytes()[:80])
    thumbs = draw(found["b"])
    assert thumbs.image is not None and thumbs.rejected is None
    assert thumbs.problems[0].startswith("the rejected side cannot be decoded (")
    assert draw(found["sub/c"]).problems == draw(found["sub/c"]).warnings == ()


def test_the_veil_is_thin_inside_strong_on_the_rim_and_nothing_outside(root):
    mask = np.zeros((10, 10), dtype=np.uint8)
    mask[2:8, 2:8] = 255
    most = VEIL[1]
    opacity = np.asarray(overlay(Image.fromarray(mask)))[..., 3]
    assert (opacity[3:7, 3:7] == most).all() and (opacity[2, 2:8] == 255).all() and (opacity[2:8, 7] == 255).all()
    assert (opacity[mask == 0] == 0).all()
    assert (np.asarray(overlay(Image.new("L", (10, 10), 255)))[..., 3] == most).all()


def test_a_grey_mask_is_seen_and_a_dim_one_is_told(root):
    """A mask of one grey has a line around it like a white one; what is only just not black has a veil."""
    for level in (1, 100, 127):
        mask = np.zeros((10, 10), dtype=np.uint8)
        mask[2:8, 2:8] = level
        opacity = np.asarray(overlay(Image.fromarray(mask)))[..., 3]
        assert (
            (opacity[2, 2:8] == 255).all() and (opacity[3:7, 3:7] >= VEIL[0]).all() and (opacity[mask == 0] == 0).all()
        )
    both = np.zeros((10, 10), dtype=np.uint8)
    both[:, :3], both[:, 7:] = 255, 60
    opacity = np.asarray(overlay(Image.fromarray(both)))[..., 3]
    assert VEIL[0] <= opacity[5, 8] < opacity[5, 0] == VEIL[1] and opacity[5, 2] == 255 and (opacity[:, 3:7] == 0).all()
    write_mask(root / "mask/a.png", np.pad(np.ones((8, 16)), 4))
    thumbs = draw(cards(root, TRIPLE)["a"])
    (said,) = thumbs.warnings
    assert said.startswith("the brightest value of the mask is 1 of 255")
    assert set(np.unique(np.asarray(thumbs.mask))) == {0, 1}
    labels = [*TRIPLE[:2], {**TRIPLE[2], "mask_values": "labels"}]
    thumbs = draw(cards(root, labels)["a"])
    assert thumbs.warnings == () and set(np.unique(np.asarray(thumbs.mask))) == {0, 255}


def test_what_is_grey_beside_white_has_dashes_and_is_said_in_words():
    mask = np.zeros((100, 100), dtype=np.uint8)
    mask[10:50, 10:50], mask[60:90, 60:90] = 255, 60
    opacity = np.asarray(overlay(Image.fromarray(mask)))[..., 3]
    rim = np.concatenate([opacity[60, 60:90], opacity[60:90, 60], opacity[89, 60:90], opacity[60:90, 89]])
    assert 0.3 < (rim == 255).mean() < 0.7
    assert (opacity[10, 10:50] == 255).all() and (opacity[61:89, 61:89] < VEIL[1]).all()
    assert is_grey(Image.fromarray(mask)) and weights_in_words(Image.fromarray(mask)) == (
        "mask trains 25% with weights 0.24 to 1"
    )
    mask[60:90, 60:90] = 0
    mask[9, 10:50] = 120  # the softened edge of what is white
    assert not is_grey(Image.fromarray(mask)) and weights_in_words(Image.fromarray(mask)) == "mask trains 16%"


def test_a_file_is_kept_whole_with_the_box_that_is_cut_out_of_it(root):
    card = cards(root, [{**TRIPLE[0], "resolution": 16}, *TRIPLE[1:]])["a"]
    image, rejected = originals(card, 12)
    assert (image.side, rejected.side) == ("image", "rejected")
    assert image.picture.size == (12, 8) and image.box == pytest.approx((4 / 24, 0, 20 / 24, 1))
    assert image.about.endswith("win/a.png: 24x16, trained at 16x16")
    assert [edge_for(files) for files in (1, 60, 61, 400)] == [1280, 1280, 896, 640]
