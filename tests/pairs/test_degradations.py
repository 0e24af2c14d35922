"""What each degradation does to a picture, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowhooks.pairs.degradations import KINDS, degrade, parse, stream


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    masked=st.booleans(),
)
def test_nothing_changes_outside_of_what_is_reported(kind, height, width, seed, masked):
    original = picture(height, width, seed)
    kept = original.copy()
    region = np.random.default_rng(seed).random((height, width)) < 0.3 if masked else None
    worse, where = parse(kind)(original, stream(seed, "a"), region)
    assert worse.shape == original.shape and worse.dtype == np.uint8 and where.dtype == bool
    assert (worse[~where] == original[~where]).all()
    assert (original == kept).all()
    if region is not None:
        assert not where[~region].any()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_degradation_is_seen_where_it_is_reported(kind):
    """Ink and noise nearly everywhere; blur and JPEG more the stronger they are."""
    original = picture(96, 64)
    worse, where = parse(kind)(original, stream(0, "a"))
    changed = (worse != original).any(axis=-1)
    assert changed[where].mean() > 0.95
    assert where.all() == (kind in ("blur", "jpeg"))
    weak, strong = {"blur": (0.5, 4), "jpeg": (95, 5), "blots": (1, 9), "noise": (0.05, 0.5)}[kind]
    error = [
        np.abs(parse(f"{kind}:{strength}")(original, stream(0, "a"))[0].astype(float) - original).mean()
        for strength in (weak, strong)
    ]
    assert error[0] < error[1]


def test_ink_shows_on_black_and_on_white():
    for shade in (0, 255):
        flat = np.full((32, 32, 3), shade, dtype=np.uint8)
        worse, where = parse("blots:1")(flat, stream(1, "a"))
        assert np.abs(worse.astype(int) - shade)[where].max() > 100


def test_noise_has_the_stated_deviation():
    grey = np.full((200, 200, 3), 128, dtype=np.uint8)
    region = np.zeros((200, 200), dtype=bool)
    region[:, 100:] = True
    worse, _ = parse("noise:0.1")(grey, stream(0, "a"), region)
    assert worse[region].std() == pytest.approx(25.5, rel=0.02)


def test_all_of_them_lie_upon_each_other():
    original = picture(40, 40)
    chosen = [parse("blots:1"), parse("noise:0.5")]
    worse, where = degrade(original, chosen, stream(0, "a"))
    rng = stream(0, "a")
    inked, blot = chosen[0](original, rng)
    both, patch = chosen[1](inked, rng)
    assert (worse == both).all() and (where == (blot | patch)).all()


def test_the_random_numbers_of_a_picture_are_its_own():
    first = stream(0, "a").random()
    assert stream(0, "a").random() == first
    assert len({first, stream(1, "a").random(), stream(0, "b").random(), stream(0, "a/b").random()}) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("blot", "'blot' is no degradation; the kinds are blur, jpeg, blots, noise"),
        ("blur:", "'' is no number; blur takes a radius in pixels, as in blur:2"),
        ("blur:0", "from 0.1 to 100"),
        ("blur:nan", "from 0.1 to 100"),
        ("jpeg:9.5", "a whole number from 1 to 95"),
        ("noise:2", "from 0.01 to 1"),
    ],
)
def test_a_wrong_degradation_is_refused(text, said):
    with pytest.raises(ValueError) as refused:
        parse(text)
    assert said in str(refused.value)
    assert str(parse("noise")) == "noise:0.25"
