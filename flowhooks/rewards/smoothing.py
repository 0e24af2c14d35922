"""Rewards whose gradient follows what cannot be seen, made to look at an image and its neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from flowhooks.rewards.base import Records, Reward
from flowhooks.rewards.scoring import scored_with_gradient


def smoothed_with_gradient(
    rewards: Sequence[Reward],
    weights: Sequence[float],
    pixels: Tensor,
    prompts: Sequence[str],
    records: Records,
    noises: Iterable[Tensor],
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """As :func:`flowhooks.rewards.scored_with_gradient`, of the mean over copies of the images. One copy after the
    other, so only one graph is held at a time.

    Args:
        noises: of the shape of ``pixels``, one or more; each makes a copy, ``pixels`` plus it, clamped to [0, 1].

    Raises:
        ValueError, RewardError: as :func:`flowhooks.rewards.scored_with_gradient`.
    """
    found = []
    for noise in noises:
        moved = pixels + noise
        copy = moved.clamp(0, 1)
        total, each, gradient = scored_with_gradient(rewards, weights, copy, prompts, records)
        # Through the clamp nothing comes back from outside.
        found.append((total, each, gradient * (moved == copy)))
    totals, all_of, gradients = zip(*found, strict=True)
    return _mean(totals), {name: _mean([each[name] for each in all_of]) for name in all_of[0]}, _mean(gradients)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(0)
