"""Compare the samples of a group by their rewards: the advantages of policy gradients. Samples of a group stand in a
row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: What keeps a group whose samples are nearly equal from being blown up.
SMALL = 1e-4

#: Returns the sum of a tensor over all processes.
Summed = Callable[[Tensor], Tensor]


def group_advantages(rewards: Tensor, size: int, clip: float) -> Tensor:
    """``[B]`` of groups of ``size`` in a row: ``(r - mean) / (std + 1e-4)`` within each, cut off at ``clip``."""
    groups = rewards.unflatten(0, (-1, size))
    spread = groups.std(1, correction=0, keepdim=True)
    return ((groups - groups.mean(1, keepdim=True)) / (spread + SMALL)).clamp(-clip, clip).flatten()


def batch_advantages(rewards: Tensor, size: int, clip: float, summed: Summed) -> Tensor:
    """``[B]`` ``(r - mean of the group) / (std of the batch + 1e-4)``, cut off at ``clip``.

    Args:
        summed: sums over processes; the batch is that of all.
    """
    groups = rewards.unflatten(0, (-1, size))
    away = (groups - groups.mean(1, keepdim=True)).flatten()
    return (away / (_moments(rewards, summed)[1] + SMALL)).clamp(-clip, clip)


def decoupled_advantages(
    each: Sequence[Tensor], weights: Sequence[float], size: int, clip: float, summed: Summed
) -> Tensor:
    """``[B]`` of GDPO (arXiv 2601.05242): every reward ``[B]`` is normalised within its group, ``(r - mean) / (std +
    1e-4)``; their weighted sum is normalised over the batch in the same way, and cut off at ``clip``.

    So the range of a reward does not count, as long as it differs within a group by much more than 1e-4; its weight
    does.

    Args:
        weights: one for each reward; one of weight 0 does not count.
        summed: sums over processes; the batch is that of all.
    """
    total = torch.zeros_like(each[0])
    for rewards, weight in zip(each, weights, strict=True):
        if weight:
            total = total + weight * group_advantages(rewards, size, float("inf"))
    mean, spread = _moments(total, summed)
    return ((total - mean) / (spread + SMALL)).clamp(-clip, clip)


def _moments(values: Tensor, summed: Summed) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of ``[B]`` values over all processes, 0-dim."""
    count = summed(torch.ones_like(values).sum())
    mean = summed(values.sum()) / count
    return mean, (summed((values - mean).square().sum()) / count).sqrt()
