"""Judge the images of one prompt together: as a group, or two at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import RewardError
from flowhooks.rewards.base import PictureReward, Records


def all_pairs(count: int, both_orders: bool) -> list[tuple[int, int]]:
    """Return every pair ``(first, second)`` of ``count`` images; in both orders, so that a judge that favours the first
    one favours nobody."""
    return [(i, j) for i in range(count) for j in range(count) if (i != j if both_orders else i < j)]


def shares_of_wins(pairs: Sequence[tuple[int, int]], first_wins: Tensor, count: int) -> Tensor:
    """Return ``[count]`` in [0, 1]: the mean, over the comparisons that an image is in, of the probability that it won.

    This is the win rate of Pref-GRPO (arXiv 2508.20751). Where each image meets each other one equally often, as here,
    the strengths of a Bradley-Terry model (Biometrika 39, 1952) that is fitted to the same comparisons have the same
    order: their likelihood depends on the number of wins alone. Unlike these, a share is finite for who wins always.

    Args:
        pairs: of images, each image in one or more.
        first_wins: ``[pairs]``, the probability in [0, 1] that the first of each is the better one.
    """
    first, second = torch.tensor(list(pairs), device=first_wins.device).unbind(1)
    nothing = first_wins.new_zeros(count)
    won = nothing.index_add(0, first, first_wins).index_add(0, second, 1 - first_wins)
    ones = torch.ones_like(first_wins)
    return won / nothing.index_add(0, first, ones).index_add(0, second, ones)


class PairReward(PictureReward):
    """Judges two images of one prompt at a time, and scores each image by its share of wins in its group; see
    :func:`shares_of_wins`.

    A class of your own defines ``prefer``. The preference model of a pair may not be symmetric: by default each pair is
    shown in both orders.
    """

    judges = "pairs"
    range = (0.0, 1.0)
    # What a group gains in one place it loses in another: the gradient of the sum is 0.
    differentiable = False
    both_orders: bool = True

    @abstractmethod
    def prefer(
        self, first: Tensor, second: Tensor, prompts: Sequence[str], records: Records, *references: Any
    ) -> Tensor:
        """Return ``[P]`` in [0, 1]: the probability that each of the images ``first`` ``[P, 3, H, W]``, fp32 in [0, 1],
        is better than that of ``second`` in its place; 1, 0.5 and 0 from a judge that names the winner."""

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records, *references: Any) -> Tensor:
        pairs = all_pairs(len(pictures), self.both_orders)
        one, other = ([pair[side] for pair in pairs] for side in (0, 1))
        beside = ([each[i] for i in one] for each in (prompts, records, *references))
        wins = self.prefer(pictures[one], pictures[other], *beside)
        if not isinstance(wins, Tensor) or wins.shape != (len(pairs),):
            found = tuple(wins.shape) if isinstance(wins, Tensor) else type(wins).__name__
            raise RewardError(f"reward {self.name!r}: `prefer` gave {found}, expected ({len(pairs)},): one per pair")
        return shares_of_wins(pairs, wins.to(pictures.dtype), len(pictures))
