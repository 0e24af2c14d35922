"""IPO: bring the margin of every pair to ``1 / beta`` (arXiv 2310.12036; on errors of a flow it is our mapping)::

    loss = mean_b[ (margin_b / 2 - (2 p_b - 1) / (2 beta)) ** 2 ]

p is the share of votes for the preferred side: 1, and 1/2 for a tie, which is brought to a margin of 0. The paper's
loss of one vote, averaged over votes of which p are for one side and 1 - p for the other, is this up to a constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowhooks.data.blocks import PREFERENCE
from flowhooks.hooks.ipo import IPOSpec
from flowhooks.hooks.preference import PairPreference
from flowhooks.kernel.step import Step
from flowhooks.transfer import whole_numbers


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """``(margin / 2 - 1 / (2 beta)) ** 2`` of each pair, ``[B]``; 0 at a margin of ``1 / beta``."""
    return (margin / 2 - 1 / (2 * beta)).square()


def tie_loss(margin: Tensor) -> Tensor:
    """``(margin / 2) ** 2`` of each tie, ``[B]``: the loss at a share of votes of 1/2, for every beta."""
    return (margin / 2).square()


class IPO(IPOSpec, PairPreference):
    """Owns the reduction and the objective of a preference run."""

    health = "ipo_implicit_accuracy"

    @property
    def first_loss(self) -> float:
        return 1 / (4 * self.beta**2)

    def pair_loss(self, step: Step, margin: Tensor) -> Tensor:
        losses = ipo_loss(self.capped(margin), self.beta)
        tied = self._tied(step)
        return losses if tied is None else torch.where(tied, tie_loss(margin), losses)

    def pull(self, margin: Tensor) -> float:
        return 1 / (2 * self.beta)

    def decided(self, step: Step) -> Tensor | None:
        weight, tied = super().decided(step), self._tied(step)
        if tied is None:
            return weight
        decided = (~tied).to(step.batch.clean.dtype)
        return decided if weight is None else decided * weight

    def check_reference(self, step: Step, margin: Tensor, losses: Tensor) -> None:
        tied = self._tied(step)
        super().check_reference(step, margin, losses if tied is None else losses.masked_fill(tied, self.first_loss))

    def _tied(self, step: Step) -> Tensor | None:
        """Return which pairs ``[B]`` are ties; None where no set of the run keeps ties, so that no sample says."""
        records = step.batch.records
        if not records or PREFERENCE not in records[0]:
            return None
        return whole_numbers([record[PREFERENCE] == 0.5 for record in records], step.batch.clean.device) > 0
