"""Rewards that judge the images of a prompt together: shares of wins, groups in any order, videos, references."""

from __future__ import annotations

import pytest
import torch

from flowhooks.errors import RewardError
from flowhooks.rewards import PairReward, PictureReward, SampleReferences, scored, scored_with_gradient
from flowhooks.rewards.groups import all_pairs, shares_of_wins


class Brighter(PairReward):
    """How probably the first of two images is the brighter one."""

    def __init__(self, *, both_orders=True, bias=0.0, max_frames=8):
        super().__init__(name="brighter", max_frames=max_frames)
        self.both_orders, self.bias = both_orders, bias

    def prefer(self, first, second, prompts, records):
        apart = first.mean((1, 2, 3)) - second.mean((1, 2, 3))
        return torch.sigmoid(20 * apart + self.bias)


class Rank(PictureReward):
    """The place of an image in its group by brightness, from 0, over the size of the group."""

    judges = "group"
    differentiable = False

    def __init__(self, seen=None):
        super().__init__(name="rank", max_frames=2)
        self.seen = [] if seen is None else seen

    def score(self, pictures, prompts, records):
        self.seen.append((len(pictures), set(prompts), [record["n"] for record in records]))
        return pictures.mean((1, 2, 3)).argsort().argsort().float() / len(pictures)


def lit(*levels):
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 4).clone()


def ask(reward, on, groups, prompts=None, references=()):
    records = [{"n": n} for n in range(len(on))]
    return scored([reward], [1.0], on, prompts or ["p"] * len(on), records, references, groups)[0]


def test_shares_of_wins_by_hand():
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert all_pairs(3, both_orders=False) == pairs
    assert all_pairs(3, both_orders=True) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    found = shares_of_wins(pairs, torch.tensor([1.0, 1.0, 0.25]), 3)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.125, 0.375]))
    assert float(found.sum()) == pytest.approx(3 / 2), "every comparison has one win to give"


def test_strengths_of_bradley_and_terry_have_the_same_order():
    """Strengths that are fitted to all pairs, by the iteration of Hunter (Annals of Statistics 32, 2004)."""
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        pairs = all_pairs(5, both_orders=True)
        wins = 0.05 + 0.9 * torch.rand(len(pairs), generator=draw, dtype=torch.float64)
        won = torch.zeros(5, 5, dtype=torch.float64)
        for (i, j), win in zip(pairs, wins, strict=True):
            won[i, j] += win
            won[j, i] += 1 - win
        strength = torch.ones(5, dtype=torch.float64)
        for _ in range(500):
            met = (won + won.T) / (strength[:, None] + strength)
            strength = won.sum(1) / met.sum(1)
            strength = strength / strength.sum()
        share = shares_of_wins(pairs, wins, 5)
        assert strength.argsort().tolist() == share.argsort().tolist()


def test_pairs_are_those_of_a_group_wherever_its_images_stand():
    on, groups = lit(0.9, 0.1, 0.5, 0.2, 0.1), [4, 2, 4, 2, 4]
    found = ask(Brighter(), on, groups)
    bright = on.mean((1, 2, 3))

    def share(own, *others):
        return sum(torch.sigmoid(20 * (bright[own] - bright[other])) for other in others) / len(others)

    expected = torch.stack([share(0, 2, 4), share(1, 3), share(2, 0, 4), share(3, 1), share(4, 0, 2)])
    torch.testing.assert_close(found, expected)


def test_a_judge_that_favours_the_first_one_favours_nobody_in_both_orders():
    on = lit(0.5, 0.5, 0.5)
    torch.testing.assert_close(ask(Brighter(bias=3.0), on, [0, 0, 0]), torch.full((3,), 0.5))
    once = ask(Brighter(bias=3.0, both_orders=False), on, [0, 0, 0])
    assert once[0] > once[1] > once[2]


def test_the_wins_of_a_group_have_a_sum_that_no_image_moves():
    """So the gradient of the sum, which is what is climbed, would be 0."""
    on = lit(0.5, 0.55, 0.1)
    assert float(ask(Brighter(), on, [0, 0, 0]).sum()) == pytest.approx(1.5)
    with pytest.raises(RewardError, match="'brighter' is not differentiable"):
        scored_with_gradient([Brighter()], [1.0], on, ["p"] * 3, [{}] * 3, (), [0, 0, 0])


def test_a_group_is_judged_by_itself():
    seen = []
    found = ask(Rank(seen), lit(0.3, 0.1, 0.2, 0.9), [0, 1, 0, 1], ["a", "b", "a", "b"])
    assert found.tolist() == [0.5, 0.0, 0.0, 0.5]
    assert seen == [(2, {"a"}, [0, 2]), (2, {"b"}, [1, 3])]


def test_frames_of_videos_meet_those_of_their_time():
    clip = torch.stack([lit(0.1, 0.9), lit(0.2, 0.1), lit(0.6, 0.5)], 2)
    seen = []
    found = ask(Rank(seen), clip, [0, 0])
    assert [count for count, *_ in seen] == [2, 2], "the first and the last frame"
    assert found.tolist() == [0.25, 0.25]


def test_references_are_those_of_the_first_of_a_pair():
    class Closer(PairReward):
        compares = True

        def prefer(self, first, second, prompts, records, references):
            wanted = torch.stack([each.images[0].mean() for each in references])
            near = [(each.mean((1, 2, 3)) - wanted).abs() for each in (first, second)]
            return (near[0] < near[1]).float()

    shown = [SampleReferences(images=(torch.full((3, 2, 2), level),)) for level in (0.2, 0.2)]
    assert ask(Closer(name="closer"), lit(0.25, 0.5), [0, 0], references=shown).tolist() == [1.0, 0.0]


def test_nobody_is_judged_alone():
    with pytest.raises(
        RewardError, match="'rank' judges images of one prompt together, and that of prompt 'b' is alone"
    ):
        ask(Rank(), lit(0.1, 0.2, 0.3), [0, 1, 0], ["a", "b", "a"])
    with pytest.raises(RewardError, match="got 0 groups for 2 images; give `groups`"):
        ask(Rank(), lit(0.1, 0.2), [])


def test_preferences_are_one_for_each_pair():
    class Silent(PairReward):
        def prefer(self, first, second, prompts, records):
            return torch.ones(1)

    with pytest.raises(RewardError, match=r"'silent': `prefer` gave \(1,\), expected \(2,\): one per pair"):
        ask(Silent(name="silent"), lit(0.1, 0.2), [0, 0])
