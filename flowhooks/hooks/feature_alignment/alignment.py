"""The maths of feature alignment: token features ``[B, N, D]`` of a student and of a teacher (arXiv 2410.06940)::

loss = weight * mean over tokens of 1 - cos(project(h), z)          cosine over channels
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowhooks.transfer import sent

CONSTANT, LINEAR, COSINE = "constant", "linear", "cosine"


def unit(features: Tensor) -> Tensor:
    """``z / |z|`` over channels, in fp32."""
    return F.normalize(features.float(), dim=-1)


def agreement(student: Tensor, towards: Tensor) -> Tensor:
    """``[B]`` mean over tokens of ``cos(h, z)``, for ``z`` of length 1 or a mean of such."""
    return (unit(student) * towards).sum(-1).mean(1)


def resampled(features: Tensor, grid: tuple[int, int, int], to: tuple[int, int, int]) -> Tensor:
    """``[B, N, D]`` on a grid of frames, rows and columns -> on another of as many frames, bilinear within a frame."""
    if grid == to:
        return features
    if grid[0] != to[0]:
        raise ValueError(f"features of {grid[0]} frames cannot be resampled to {to[0]} frames")
    planes = features.unflatten(1, grid).movedim(-1, 2).flatten(0, 1)
    planes = F.interpolate(planes, size=to[1:], mode="bilinear", align_corners=False)
    return planes.unflatten(0, (-1, to[0])).movedim(2, -1).flatten(1, 3)


def with_neighbours(features: Tensor, distance: int, tau: float) -> Tensor:
    """Unit features ``[B, F, P, D]``, each frame with those up to ``distance`` away: ``sum_k w_k z_k / sum_k w_k`` with
    ``w_k = exp(-|k - f| / tau)``.

    So the agreement is a weighted mean of cosines with single frames. It is the sum of arXiv 2506.09229 divided by its
    weights, which keeps it in [-1, 1].
    """
    at = torch.arange(features.shape[1], device=features.device)
    away = (at[:, None] - at[None, :]).abs()
    weights = torch.exp(-away / tau) * (away <= distance)
    return torch.einsum("fk,bkpd->bfpd", weights / weights.sum(1, keepdim=True), features)


def frame_places(count: int, wanted: int) -> list[int]:
    """Which of ``count`` frames stand for ``wanted`` latent frames: evenly spread, the first and the last included."""
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]


def projector(inner: int, outer: int, *, width: int, depth: int) -> nn.Module:
    """``depth`` linear layers with SiLU between; none is the identity."""
    if not depth:
        return nn.Identity()
    widths = [inner, *[width] * (depth - 1), outer]
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.SiLU(), nn.Linear(before, after)] if layers else [nn.Linear(before, after)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class WeightSchedule:
    """The weight over a run: it rises from 0 in ``warmup_steps``, goes to ``weight_end`` in ``decay_steps`` unless
    constant, and is 0 from ``cutoff_step`` on where that is above 0. Steps are micro-steps.

    Raises:
        ValueError: an option out of range.
    """

    weight: float
    scheduler: str
    warmup_steps: int
    decay_steps: int
    weight_end: float
    cutoff_step: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "scheduler" and value < 0:
                raise ValueError(f"`{name}` must be at least 0, got {value}")
        if self.scheduler not in (CONSTANT, LINEAR, COSINE):
            raise ValueError(f"`scheduler` must be one of {CONSTANT}, {LINEAR}, {COSINE}, got {self.scheduler!r}")
        if self.scheduler != CONSTANT and not self.decay_steps:
            raise ValueError(f"`decay_steps` must be at least 1 with the scheduler {self.scheduler!r}")

    def at(self, step: int) -> float:
        if self.cutoff_step and step >= self.cutoff_step:
            return 0.0
        if step < self.warmup_steps:
            return self.weight * step / self.warmup_steps
        if self.scheduler == CONSTANT:
            return self.weight
        done = min(1.0, (step - self.warmup_steps) / self.decay_steps)
        left = 1 - done if self.scheduler == LINEAR else (1 + math.cos(math.pi * done)) / 2
        return self.weight_end + (self.weight - self.weight_end) * left


class SimilarityCutOff:
    """Ends the alignment for good once the running mean of the agreement has reached a threshold. All on the device.

    Args:
        threshold: in (0, 1].
        decay: of the bias-corrected running mean, in [0, 1).

    Raises:
        ValueError: one of them out of range.
    """

    def __init__(self, threshold: float, decay: float):
        if not 0 < threshold <= 1 or not 0 <= decay < 1:
            raise ValueError(
                f"`similarity_threshold` must be in (0, 1] and `similarity_ema_decay` in [0, 1), got {threshold} and "
                f"{decay}"
            )
        self.threshold, self.decay = threshold, decay
        self.average, self.updates, self.reached = (torch.zeros((), dtype=torch.float64) for _ in range(3))

    def update(self, score: Tensor) -> None:
        """Take in a step's mean agreement."""
        self._move(score)
        self.average = self.decay * self.average + (1 - self.decay) * score.double()
        self.updates = self.updates + 1
        now = self.average / (1 - self.decay**self.updates) >= self.threshold
        self.reached = torch.maximum(self.reached, now.double())

    def factor(self, like: Tensor) -> Tensor:
        """1 before, 0 after."""
        self._move(like)
        return (1 - self.reached).to(like.dtype)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.clone(), "updates": self.updates.clone(), "reached": self.reached.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average, self.updates, self.reached = (state[name] for name in ("average", "updates", "reached"))

    def _move(self, like: Tensor) -> None:
        self.average, self.updates, self.reached = (
            sent(t, like.device) for t in (self.average, self.updates, self.reached)
        )
