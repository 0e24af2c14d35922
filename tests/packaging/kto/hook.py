"""KTO: learn from images that were liked or disliked one by one (arXiv 2402.01306; for diffusion 2404.04465).

With ``L`` the reduced error of the main view, policy = adapter on, reference = adapter off, y = 1 for a liked image and
-1 for a disliked one::

    a = L_ref - L_pol          z = stop_gradient(max(0, mean of a over all processes))
    loss = mean_b[ w_b (1 - sigmoid(y_b beta (a_b - z))) ]
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowhooks.errors import TrainingError
from flowhooks.hooks.kto import KTOSpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.step import Step


def kto_loss(advantage: Tensor, liked: Tensor, point: Tensor, beta: float) -> Tensor:
    """``1 - sigmoid(y beta (a - z))`` ``[B]``.

    Args:
        advantage: ``[B]`` a, by how much the policy errs less than the reference.
        liked: ``[B]`` of bool.
        point: 0-dim z >= 0, what an image is compared with; no gradient.
    """
    return torch.sigmoid(-torch.where(liked, beta, -beta) * (advantage - point))


def as_liked(label: object, file: str) -> bool:
    """Whether a cell says that an image was liked: 1, true and up are yes; 0, -1, false and down are no.

    Raises:
        TrainingError: it says neither.
    """
    word = str(label).strip().lower()
    if word in ("1", "1.0", "true", "up"):
        return True
    if word in ("0", "0.0", "-1", "false", "down"):
        return False
    raise TrainingError(f"{file}: the label {label!r} says neither liked (1, true, up) nor disliked (0, false, down)")


class KTO(KTOSpec, Hook):
    """Owns the objective of a run on labels without pairs; the label of a sample is ``label`` in its record."""

    health = "kto_implicit_accuracy"

    def objective(self, step: Step) -> Tensor:
        liked, advantage = self._liked(step), self._advantage(step)
        weight = torch.where(liked, self.liked_weight, self.disliked_weight)
        loss = weight * kto_loss(advantage, liked, self._point(step, advantage), self.beta)
        return step.mean(loss, step.views["main"].weight)

    def metrics(self, step: Step) -> dict[str, Tensor]:
        """``kto_implicit_accuracy``: share of samples on the right side of the reference point."""
        liked, advantage = self._liked(step), self._advantage(step).detach()
        point = self._point(step, advantage)
        right = ((advantage > point) == liked).to(advantage.dtype)
        return {
            "kto_implicit_accuracy": step.mean(right, step.views["main"].weight),
            "kto_advantage": advantage.mean(),
            "kto_point": point,
        }

    def _advantage(self, step: Step) -> Tensor:
        return step.score("main", "reference") - step.score("main")

    def _point(self, step: Step, advantage: Tensor) -> Tensor:
        mean = step.mean(advantage.detach(), step.views["main"].weight)
        return (step.all_reduce(mean) / step.draws.world_size).clamp(min=0)

    def _liked(self, step: Step) -> Tensor:
        batch = step.batch
        files = batch.files or ("this batch",) * len(batch.records)
        votes = [as_liked(record["label"], file) for record, file in zip(batch.records, files, strict=True)]
        return torch.tensor(votes, device=batch.clean.device)
