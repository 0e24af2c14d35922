"""Average a reward over an image and noisy copies of it, so that its gradient does not follow invisible details."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from flowhooks.rewards.base import Records, Reward
from flowhooks.rewards.scoring import References, scored_with_gradient


def smoothed_with_gradient(
    rewards: Sequence[Reward],
    weights: Sequence[float],
    pixels: Tensor,
    prompts: Sequence[str],
    records: Records,
    noises: Iterable[Tensor],
    references: References = (),
    groups: Sequence[int] = (),
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Score as :func:`flowhooks.rewards.scored_with_gradient` does, with the mean over copies of the images. Copies run
    one after the other, so only one graph is in memory at a time.

    Args:
        noises: one or more tensors of the shape of ``pixels``; each is added to ``pixels``, clamped to [0, 1], to make
            a copy.
        references, groups: as :func:`flowhooks.rewards.scored` takes them.

    Raises:
        ValueError, RewardError: as :func:`flowhooks.rewards.scored_with_gradient`.
    """
    found = []
    for noise in noises:
        moved = pixels + noise
        copy = moved.clamp(0, 1)
        total, each, gradient = scored_with_gradient(rewards, weights, copy, prompts, records, references, groups)
        # The clamp passes no gradient for values outside.
        found.append((total, each, gradient * (moved == copy)))
    totals, all_of, gradients = zip(*found, strict=True)
    return _mean(totals), {name: _mean([each[name] for each in all_of]) for name in all_of[0]}, _mean(gradients)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(0)
