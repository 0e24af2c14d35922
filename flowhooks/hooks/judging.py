"""Scores what a run samples by its rewards, on all processes together: where one of them has no number, all end the
step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowhooks.batch import Batch
from flowhooks.errors import RewardError, RewardFailure
from flowhooks.kernel.step import Step
from flowhooks.rewards import (
    References,
    build_rewards,
    references_of,
    scored,
    scored_with_gradient,
    smoothed_with_gradient,
)


class Judges:
    """Holds the rewards of a hook, on the device of its model.

    Args:
        blocks: JSON blocks of the rewards. A run that names code was refused when it was read, unless it may.
        device: where images are.
        group_size: images of each prompt, which stand in a row.

    Raises:
        ConfigError, ModelError: a reward cannot be built.
    """

    def __init__(self, blocks: Sequence[Mapping[str, Any]], device: torch.device | str, group_size: int):
        rewards, self.weights = build_rewards(blocks, allow_imports=True)
        self.rewards = [reward.to(device) for reward in rewards]
        self.group_size = group_size

    def scored(self, step: Step, pixels: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what :func:`flowhooks.rewards.scored` does of the samples of a batch.

        Raises:
            RewardFailure: on every process, where a reward fails on one of them.
        """
        with _together(step):
            beside = references_of(self.rewards, batch), self._groups(pixels)
            return scored(self.rewards, self.weights, pixels, batch.prompts, batch.records, *beside)

    def with_gradient(
        self,
        step: Step,
        pixels: Tensor,
        batch: Batch,
        references: References,
        noises: Iterable[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return what :func:`flowhooks.rewards.scored_with_gradient` does of the samples of a batch; with ``noises``,
        what :func:`flowhooks.rewards.smoothed_with_gradient` does.

        Raises:
            RewardFailure: on every process, where a reward fails on one of them.
        """
        with _together(step):
            asked = self.rewards, self.weights, pixels, batch.prompts, batch.records
            beside = references, self._groups(pixels)
            if noises is None:
                return scored_with_gradient(*asked, *beside)
            return smoothed_with_gradient(*asked, noises, *beside)

    def _groups(self, pixels: Tensor) -> list[int]:
        return [row // self.group_size for row in range(len(pixels))]


@contextmanager
def _together(step: Step) -> Iterator[None]:
    """Let all processes leave the block, or none. Alone, a process waits for nothing."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    world = step.draws.world_size
    failed = torch.zeros(world, device=step.model.device)
    if world > 1:
        failed[step.draws.rank] = float(failure is not None)
        failed = step.all_reduce(failed)
    if failure is not None:
        # What is no error of a reward is one of its code, whose name helps.
        told = failure if isinstance(failure, RewardError) else f"{type(failure).__name__}: {failure}"
        raise RewardFailure(str(told)) from failure
    if world > 1 and failed.any():
        raise RewardFailure(f"a reward failed on process {int(failed.argmax())}")
