"""Makes pairs of the model's own samples (online DPO, arXiv 2402.04792): the best of a group against its worst."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.hooks.best_and_worst import BestAndWorstSpec
from flowhooks.hooks.ends.hook import scored_batch
from flowhooks.hooks.paired_views.hook import rejected_view
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import Path, Sigma, View


def best_and_worst(rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, of rewards ``[groups, size]``, the row ``[groups]`` of the best and of the worst sample of each group, in
    the batch of all, and by how much their rewards differ, ``[groups]``. Of equal ones the first counts."""
    first = torch.arange(len(rewards), device=rewards.device) * rewards.shape[1]
    best, worst = rewards.argmax(1), rewards.argmin(1)
    gap = rewards.gather(1, best[:, None]) - rewards.gather(1, worst[:, None])
    return first + best, first + worst, gap.squeeze(1)


class BestAndWorst(BestAndWorstSpec, Hook):
    """Replaces the view ``main`` by the best of each group, and adds the worst as ``rejected``, with its noise and
    sigma.

    Raises:
        ModelError: on attaching, groups of one.
    """

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        if session.source.group_size < 2:
            raise ModelError("`best_and_worst` compares samples of one prompt; set `group_size` to 2 or more")
        yield

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        batch, main = scored_batch(step), views[MAIN_VIEW]
        best, worst, gap = best_and_worst(batch.groups)
        self._gap, self._counted = gap, (gap > 0) & (gap >= self.min_gap)
        assert main.clean is not None and main.noise is not None
        preferred = replace(
            main,
            state=Path(clean=main.clean.index_select(0, best), noise=main.noise.index_select(0, best)),
            time=Sigma(level=main.level.index_select(0, best)),
            # All samples of a group have one prompt.
            condition=main.condition.take(range(0, len(batch.rewards), batch.group_size)),
            weight=self._counted.to(main.clean.dtype),
        )
        return {MAIN_VIEW: preferred, "rejected": rejected_view(preferred, main.clean.index_select(0, worst))}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        """Returns NaN for the gap where all groups are left out."""
        counted = self._counted.to(self._gap.dtype)
        gap = torch.where(step.all_reduce(counted.sum()) > 0, step.mean(self._gap, counted), math.nan)
        return {"best_and_worst_gap": gap, "best_and_worst_left_out_pct": 100 * (1 - counted).mean()}
