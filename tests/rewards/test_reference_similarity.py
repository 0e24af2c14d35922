"""What an image has kept of its reference: against formulas by hand, and what lies outside a mask."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from flowhooks.batch import Batch, NoCondition
from flowhooks.errors import RewardError
from flowhooks.rewards import (
    PictureReward,
    SampleReferences,
    build_reward,
    references_of,
    reward_gradient,
    scored,
    scored_with_gradient,
    smoothed_with_gradient,
)
from flowhooks.rewards.reference_similarity import covering, structural_similarity

PROMPTS, RECORDS = ["remove the blot", "a cat"], [{}, {}]


def images(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape or (2, 3, 16, 20), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shown(others, masks=None):
    return [
        SampleReferences(images=(other,), mask=None if masks is None else masks[i]) for i, other in enumerate(others)
    ]


def similar(**options):
    return build_reward({"type": "reference_similarity", **options})


def by_hand(one, other, weight, row, column, channel):
    """Structural similarity of the window at a place, with NumPy's names of things: mean, variance, covariance."""
    steps = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(steps**2) / 4.5)
    part = (slice(row, row + 11), slice(column, column + 11))
    w = (line[:, None] * line[None]) * weight[0][part]
    w = w / w.sum()
    a, b = one[channel][part], other[channel][part]
    ma, mb = (w * a).sum(), (w * b).sum()
    va, vb = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum()
    cov = (w * (a - ma) * (b - mb)).sum()
    return (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))


def test_structural_similarity_is_its_formula():
    one, other = images(0), images(1)
    whole = torch.ones(2, 1, 16, 20, dtype=torch.float64)
    found = structural_similarity(one, other, whole)
    for i in range(2):
        places = [(r, c, k) for r in range(6) for c in range(10) for k in range(3)]
        expected = torch.stack([by_hand(one[i], other[i], whole[i], *place) for place in places]).mean()
        torch.testing.assert_close(found[i], expected)
    torch.testing.assert_close(structural_similarity(one, one, whole), torch.ones(2, dtype=torch.float64))
    half = whole.clone()
    half[..., 12:] = 0
    torch.testing.assert_close(
        structural_similarity(one, torch.where(half > 0, one, other), half), torch.ones(2, dtype=torch.float64)
    )
    assert structural_similarity(images(2, 1, 3, 4, 4), images(3, 1, 3, 4, 4), whole[:1, :, :4, :4]).isfinite().all()


@pytest.mark.parametrize("measure", ["l1", "l2", "ssim"])
def test_what_lies_in_the_mask_is_free(measure):
    one, mask = images(0), torch.zeros(2, 1, 4, 5)
    mask[:, :, :, 3:] = 1
    other = one.clone()
    other[..., 12:] = images(1)[..., 12:]
    references = shown(other, mask)
    inside, everywhere = (similar(measure=measure, outside_mask=free) for free in (True, False))
    _, each = scored([inside], [1.0], one, PROMPTS, RECORDS, references)
    torch.testing.assert_close(each["reference_similarity"], torch.ones(2, dtype=torch.float64))
    _, each = scored([everywhere], [1.0], one, PROMPTS, RECORDS, references)
    apart = one - other
    expected = {"l1": 1 - apart.abs().mean((1, 2, 3)), "l2": 1 - apart.square().mean((1, 2, 3))}
    if measure in expected:
        torch.testing.assert_close(each["reference_similarity"], expected[measure])
    assert (each["reference_similarity"] < 0.99).all()


@pytest.mark.parametrize("measure", ["l1", "l2", "ssim"])
def test_its_gradient_is_that_of_differences(measure):
    one, other, reward = images(0), images(1), similar(measure=measure)
    found = reward_gradient(reward, one, PROMPTS, RECORDS, shown(other))
    step, place = 1e-6, (1, 2, 5, 7)
    values = []
    for sign in (1, -1):
        moved = one.clone()
        moved[place] += sign * step
        values.append(scored([reward], [1.0], moved, PROMPTS, RECORDS, shown(other))[0][1])
    torch.testing.assert_close(found[place], (values[0] - values[1]) / (2 * step), rtol=1e-4, atol=1e-8)
    noises = [torch.zeros_like(one)]
    smooth = smoothed_with_gradient([reward], [1.0], one, PROMPTS, RECORDS, noises, shown(other))
    torch.testing.assert_close(smooth[2], found)


def test_a_reference_of_another_size_covers_the_image():
    image = images(0, 3, 8, 30)
    cut = covering(image, 16, 20)
    assert cut.shape == (3, 16, 20) and torch.equal(covering(image, 8, 30), image)
    video = images(1, 2, 3, 4, 16, 20)
    video[:] = torch.stack([cut, cut])[:, :, None]
    _, each = scored([similar(measure="l2")], [1.0], video, PROMPTS, RECORDS, shown([image, image]))
    torch.testing.assert_close(each["reference_similarity"], torch.ones(2, dtype=torch.float64))


def test_what_is_missing_is_named():
    one = images(0)
    with pytest.raises(
        RewardError, match="compares images with their references, and that of prompt 'remove the blot'"
    ):
        scored([similar()], [1.0], one, PROMPTS, RECORDS)
    lacking = [*shown(one[:1]), SampleReferences(images=())]
    with pytest.raises(RewardError, match="that of prompt 'a cat' has none"):
        scored_with_gradient([similar()], [1.0], one, PROMPTS, RECORDS, lacking)
    with pytest.raises(RewardError, match=r"reference 1, counted from 0, .* has 1; lower `reference`"):
        scored([similar(reference=1)], [1.0], one, PROMPTS, RECORDS, shown(one))
    with pytest.raises(RewardError, match="outside the mask, and the sample of prompt 'remove the blot' has none"):
        scored([similar(outside_mask=True)], [1.0], one, PROMPTS, RECORDS, shown(one))


def test_a_reward_of_ones_own_compares_or_does_not():
    class Brighter(PictureReward):
        compares = True

        def score(self, pictures, prompts, records, references):
            return pictures.mean((1, 2, 3)) - torch.stack([each.images[0].mean() for each in references])

    class Bright(PictureReward):
        def score(self, pictures, prompts, records):
            return pictures.mean((1, 2, 3))

    one, other = images(0), images(1)
    _, each = scored([Brighter(name="more"), Bright(name="all")], [1.0, 1.0], one, PROMPTS, RECORDS, shown(other))
    torch.testing.assert_close(each["all"] - each["more"], other.mean((1, 2, 3)))


def test_the_references_of_a_batch_are_read_once():
    red = Image.new("RGB", (6, 4), (255, 0, 0))
    together = {"image": [red, red.resize((2, 2))], "mask_image": red}
    mask = torch.rand(3, 1, 2, 2)
    batch = Batch(
        clean=torch.zeros(3, 4), condition=NoCondition(3), mask=mask, references=(together, together, {"image": red})
    )
    assert references_of([build_reward({"type": "flowhooks.digits.rewards:Ink"}, allow_imports=True)], batch) == ()
    first, second, third = references_of([similar()], batch)
    assert [tuple(each.shape) for each in first.images] == [(3, 4, 6), (3, 2, 2), (3, 4, 6)]
    assert first.images is second.images and third.images[0][0].eq(1).all() and not third.images[0][1:].any()
    assert torch.equal(third.mask, mask[2])
