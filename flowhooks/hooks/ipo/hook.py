"""IPO: bring the margin of every pair to ``1 / beta`` (arXiv 2310.12036; on errors of a flow it is our mapping)::

loss = mean_b[ (margin_b / 2 - 1 / (2 beta)) ** 2 ]
"""

from __future__ import annotations

from torch import Tensor

from flowhooks.hooks.ipo import IPOSpec
from flowhooks.hooks.preference import PairPreference
from flowhooks.kernel.step import Step


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """``(margin / 2 - 1 / (2 beta)) ** 2`` of each pair, ``[B]``; 0 at a margin of ``1 / beta``."""
    return (margin / 2 - 1 / (2 * beta)).square()


class IPO(IPOSpec, PairPreference):
    """Owns the reduction and the objective of a preference run."""

    health = "ipo_implicit_accuracy"

    @property
    def first_loss(self) -> float:
        return 1 / (4 * self.beta**2)

    def pair_loss(self, step: Step, margin: Tensor) -> Tensor:
        return ipo_loss(self.capped(margin), self.beta)

    def pull(self, margin: Tensor) -> float:
        return 1 / (2 * self.beta)
