"""Direct group preference optimisation (DGPO, arXiv 2510.08425).

With ``L = mean |v - u|^2`` of a sample, ``u = e - x0``, ``A`` its advantage, K the size of a group, ``b`` the option
beta, ``c`` the clip range, and sg for what has no gradient::

    W = sg sigmoid(b / K sum over the group of A (L - L_ref))          loss = mean over the group of W A L

A sample whose L has moved by ``c`` counts with its value and without its gradient: where ``A > 0`` and
``exp(L_old - L) > 1 + c``, or ``A < 0`` and ``exp(L_old - L) < 1 - c``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from flowhooks.hooks.asking import guided_velocity, prepare_guidance
from flowhooks.hooks.dgpo import DGPOSpec
from flowhooks.hooks.scored import OLD, ScoredObjective, grouped, velocity_error
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View


def group_weight(error: Tensor, reference: Tensor, advantage: Tensor, beta: float) -> Tensor:
    """Return the weight ``[groups, 1]`` of groups, without gradient.

    Args:
        error, reference, advantage: ``[groups, group_size]`` errors of the policy and of the reference, advantages.
    """
    return torch.sigmoid(beta * (advantage * (error - reference)).mean(1, keepdim=True)).detach()


def moved_enough(error: Tensor, old: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Return whether samples have moved as far as they may in the direction of their advantage; all of one shape."""
    ratio = torch.exp(old - error)
    return torch.where(advantage > 0, ratio > 1 + clip_range, (advantage < 0) & (ratio < 1 - clip_range))


def dgpo_loss(
    error: Tensor, old: Tensor, reference: Tensor, advantage: Tensor, beta: float, clip_range: float
) -> Tensor:
    """Return the loss ``[groups, group_size]`` of samples.

    Args:
        error, old, reference, advantage: ``[groups, group_size]`` errors of the policy, of the old model and of the
            reference, advantages.
    """
    weight = group_weight(error, reference, advantage, beta)
    kept = torch.where(moved_enough(error, old, advantage, clip_range), error.detach(), error)
    return weight * advantage * kept


class DGPO(DGPOSpec, ScoredObjective):
    """Sets the objective of scored samples, whose groups have one noise and one noise level each.

    Raises:
        ModelError: on attaching, guidance where prompts cannot be encoded without their text.
    """

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        if self.unprompted():
            prepare_guidance(session, "`reference_guidance`")
        yield

    def losses(self, step: Step, view: View) -> Tensor:
        return dgpo_loss(*self._compared(step, view), self.beta, self.clip_range).flatten()

    def measured(self, step: Step, view: View) -> dict[str, Tensor]:
        error, old, reference, advantage = self._compared(step, view)
        still = moved_enough(error, old, advantage, self.clip_range)
        weight = group_weight(error, reference, advantage, self.beta).expand_as(error)
        return {"weight": weight.flatten(), "still_pct": 100.0 * still.flatten().to(error.dtype)}

    def _compared(self, step: Step, view: View) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``[groups, group_size]`` errors of the policy, of the old model and of the reference, advantages."""
        policy, old = self.error_of(step), self.error_of(step, OLD)
        reference = old
        if self.reference == "base":
            guided = guided_velocity(step, view, "reference", self.reference_guidance)
            reference = velocity_error(guided, step.target(view.name))
        one, two, three, four = (grouped(step, each) for each in (policy, old, reference, self.advantages(step)))
        return one, two, three, four
