"""KTO: learn from images that were liked or disliked one by one (arXiv 2402.01306; for diffusion 2404.04465).

With ``L`` the reduced error of a sample under policy and reference, y = 1 for a liked one and -1 for a disliked one::

    a = L_ref - L_pol          z = stop_gradient(max(0, mean of a over all samples and processes))
    loss = mean_b[ w_b (1 - sigmoid(y_b beta (a_b - z))) ]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import TrainingError
from flowhooks.hooks.detectors import drifts
from flowhooks.hooks.kto import DISLIKED, LIKED, KTOSpec, as_liked
from flowhooks.hooks.preference import Compared, plain_error, win_penalty
from flowhooks.hooks.preference_spec import LOSE, WIN
from flowhooks.kernel.step import Step
from flowhooks.transfer import whole_numbers


def kto_loss(advantage: Tensor, liked: Tensor, point: Tensor, beta: float) -> Tensor:
    """``1 - sigmoid(y beta (a - z))`` of each sample, ``[N]``.

    Args:
        advantage: ``[N]`` a, by how much the policy errs less than the reference.
        liked: ``[N]`` of bool.
        point: 0-dim z >= 0, what an image is compared with; no gradient.
    """
    return torch.sigmoid(torch.where(liked, -beta, beta) * (advantage - point))


class KTO(KTOSpec, Compared):
    """Owns the reduction and the objective of a run on labels. Samples are those of the main view, or of both sides of
    pairs, one after the other."""

    health = "kto_implicit_accuracy"

    @property
    def first_loss(self) -> float | None:
        return self.liked_weight / 2 if self.liked_weight == self.disliked_weight else None

    def objective(self, step: Step) -> Tensor:
        liked, advantage, weight = self._liked(step), self._advantage(step), self._weight(step)
        losses = self._losses(step, liked, advantage)
        loss = step.mean(losses, weight)
        self.check_reference(step, advantage, losses)
        if self.sft_loss_weight:
            loss = loss + self.sft_loss_weight * self._plain(step)
        if self.win_weight:
            loss = loss + step.mean(self._win_penalty(liked, advantage), weight)
        return loss

    def metrics(self, step: Step) -> dict[str, Tensor]:
        """``kto_implicit_accuracy`` is the share of samples on the right side of the point that they are compared
        with. Of what only liked or only disliked samples have, NaN is returned where a batch has none."""
        liked, advantage, weight = self._liked(step), self._advantage(step), self._weight(step)
        point = self._point(step, advantage)
        losses = kto_loss(advantage, liked, point, self.beta)
        found = {
            "loss": step.mean(self._losses(step, liked, advantage), weight),
            "advantage": step.mean(advantage, weight),
            "point": point,
            "liked_pct": step.mean(100.0 * liked.to(advantage.dtype), weight),
            "implicit_accuracy": step.mean(((advantage > point) == liked).to(advantage.dtype), weight),
            "gradient_factor": step.mean(4 * losses * (1 - losses), weight),
        }
        policy, reference = (
            torch.cat([step.score(view, role) for view in self.sides]) for role in ("policy", self.role)
        )
        for name, kind, sign in (("win", liked, 1), ("lose", ~liked, -1)):
            found[f"{name}_adv"] = self._mean_of(step, kind, sign * advantage)
            found[f"policy_{name}_err"] = self._mean_of(step, kind, policy)
            found[f"ref_{name}_err"] = self._mean_of(step, kind, reference)
        if self.sft_loss_weight:
            found["sft_loss"] = self._plain(step)
        if self.win_weight:
            found["win_penalty"] = step.mean(self._win_penalty(liked, advantage), weight)
        return self.named(step, {**found, **drifts(step, self.role, self.sides)})

    def _losses(self, step: Step, liked: Tensor, advantage: Tensor) -> Tensor:
        weight = torch.where(liked, self.liked_weight, self.disliked_weight)
        return weight * kto_loss(advantage, liked, self._point(step, advantage), self.beta)

    def _advantage(self, step: Step) -> Tensor:
        return torch.cat([step.score(view, self.role) - step.score(view) for view in self.sides])

    def _point(self, step: Step, advantage: Tensor) -> Tensor:
        mean = step.mean(advantage.detach(), self._weight(step))
        return (step.all_reduce(mean) / step.draws.world_size).clamp(min=0)

    def _win_penalty(self, liked: Tensor, advantage: Tensor) -> Tensor:
        """The slope of a liked sample's loss at the start is ``w beta / 4``."""
        weight = self.win_weight * self.liked_weight * self.beta / 4
        return torch.where(liked, win_penalty(advantage, weight), 0.0)

    def _plain(self, step: Step) -> Tensor:
        """The ordinary loss of what was liked, 0 where a batch has nothing of the kind."""
        if self.label is None:
            return step.mean(plain_error(step), step.views[WIN].weight)
        return step.mean(plain_error(step), self._counted(step, self._liked(step)))

    def _mean_of(self, step: Step, kind: Tensor, values: Tensor) -> Tensor:
        counted = self._counted(step, kind)
        some = step.all_reduce(counted.sum()) > 0
        return torch.where(some, step.mean(values, counted), math.nan)

    def _counted(self, step: Step, kind: Tensor) -> Tensor:
        """Weights ``[N]`` of the samples of a kind, among those that are compared."""
        weight = self._weight(step)
        counted = kind.to(step.batch.clean.dtype)
        return counted if weight is None else counted * weight

    def _weight(self, step: Step) -> Tensor | None:
        weights = [step.views[view].weight for view in self.sides]
        return None if weights[0] is None else torch.cat([each for each in weights if each is not None])

    def _liked(self, step: Step) -> Tensor:
        batch, count = step.batch, len(step.batch.clean)
        if self.label is None:
            votes = [view != LOSE for view in self.sides for _ in range(count)]
        else:
            files = batch.files or ("this batch",) * count
            if not batch.records:
                raise ValueError("the batch has no `records` with labels; give them to Batch(records=...)")
            votes = [self._vote(record, file) for record, file in zip(batch.records, files, strict=True)]
        return whole_numbers(votes, batch.clean.device) > 0

    def _vote(self, record: Mapping[str, Any], file: str) -> bool:
        label = record.get(str(self.label))
        liked = as_liked(label)
        if liked is None:
            raise TrainingError(
                f"{file}: {self.label!r} is {label!r}; expected one of {', '.join(LIKED)} for an image that was liked, "
                f"or of {', '.join(DISLIKED)}"
            )
        return liked
