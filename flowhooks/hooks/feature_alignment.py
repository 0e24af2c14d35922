"""Pull the features of an early block towards a teacher's: one hook, whatever the teacher.

REPA (arXiv 2410.06940) asks a frozen vision model, CREPA (2506.09229) asks it about neighbouring frames too, LayerSync
(2510.12581) a deeper block of the same pass, Self-Flow (2603.06507) the averaged weights on a cleaner view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.hooks.alignment import (
    CONSTANT,
    SimilarityCutOff,
    WeightSchedule,
    agreement,
    resampled,
    unit,
    with_neighbours,
)
from flowhooks.hooks.alignment_sources import CLEANER, PASSES, SOURCES, Parts, build_parts
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW, POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step


class FeatureAlignment(Hook):
    """Adds ``weight * mean over tokens and samples of 1 - cos(project(h), z)`` as ``alignment_loss``.

    ``h`` are the picture tokens of the policy on the main view after a block, taken in passing; ``z`` the teacher's.
    The projector is trained; it is in checkpoints but not in what is exported.

    Args:
        source: ``layersync``, ``backbone``, ``external``, ``crepa`` or ``self_flow``, which leaves held-out data alone.
        block_index: the student's block, by number in running order or by module name.
        teacher_block_index: the teacher's, of ``layersync``, ``backbone`` and ``self_flow``.
        encoder: folder or Hub id of the vision model, of ``external`` and ``crepa``.
        weight, scheduler, warmup_steps, decay_steps, weight_end, cutoff_step: see
            :class:`flowhooks.hooks.alignment.Schedule`. With a weight of 0 the hook does nothing.
        similarity_threshold, similarity_ema_decay: see :class:`flowhooks.hooks.alignment.SimilarityCutOff`.
        projector_depth, projector_width: linear layers and their width; by default none for ``layersync``, else 3.
        adjacent_distance, adjacent_tau: of ``crepa``.

    Raises:
        ValueError: an option out of range.
        ModelError: on attaching, an option that the source needs missing, a block that is not there or not deeper, or a
            teacher that cannot be used.
    """

    type = "feature_alignment"
    health = "crepa_alignment_score"
    # The same hook serves runs that never say CREPA, such as Self-Flow.
    health_label = "alignment score"

    def __init__(
        self,
        *,
        source: str = "layersync",
        block_index: int | str | None = None,
        teacher_block_index: int | str | None = None,
        encoder: str | None = None,
        weight: float = 0.5,
        scheduler: str = CONSTANT,
        warmup_steps: int = 0,
        decay_steps: int = 0,
        weight_end: float = 0.0,
        cutoff_step: int = 0,
        similarity_threshold: float | None = None,
        similarity_ema_decay: float = 0.99,
        projector_depth: int | None = None,
        projector_width: int = 2048,
        adjacent_distance: int = 1,
        adjacent_tau: float = 1.0,
    ):
        if source not in SOURCES:
            raise ValueError(f"`source` must be one of {', '.join(SOURCES)}, got {source!r}")
        if min(projector_depth or 0, adjacent_distance) < 0 or projector_width < 1 or not adjacent_tau > 0:
            raise ValueError(
                "`projector_depth` and `adjacent_distance` must be at least 0, `projector_width` at least 1, and "
                "`adjacent_tau` above 0"
            )
        self.source, self.weight, self.encoder = source, weight, encoder
        self.blocks = {"block_index": block_index, "teacher_block_index": teacher_block_index}
        self.depth = (0 if source == "layersync" else 3) if projector_depth is None else projector_depth
        self.width, self.distance, self.tau = projector_width, adjacent_distance, adjacent_tau
        self.schedule = WeightSchedule(weight, scheduler, warmup_steps, decay_steps, weight_end, cutoff_step)
        limit = similarity_threshold
        self.cut_off = None if limit is None else SimilarityCutOff(limit, similarity_ema_decay)
        self._position = 0
        self._parts: Parts | None = None
        self._measured: dict[str, Tensor] = {}
        self._notes: list[str] = []
        self._resampled = False

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        if not self.weight:
            yield
            return
        with ExitStack() as stack:
            self._parts = build_parts(
                session.model, stack, self.source, self.blocks, self.encoder, width=self.width, depth=self.depth
            )
            try:
                yield
            finally:
                self._parts = None

    @contextmanager
    def watching(self, step: Step, views: Sequence[str], role: str) -> Iterator[None]:
        wanted = role in (POLICY, PASSES.get(self.source)) and MAIN_VIEW in views
        if self._parts is None or not wanted or not self._weight(step):
            yield
            return
        with self._parts.tap.open(views, role):
            yield

    def modules(self) -> dict[str, nn.Module]:
        return {"projector": self._parts.head} if self._parts and self.depth else {}

    def exported(self) -> dict[str, nn.Module]:
        return {}

    def penalty(self, step: Step) -> dict[str, Tensor]:
        if step.training:
            self._position = step.draws.micro_step
        weight = self._weight(step)
        self._measured = {}
        if self._parts is None or not weight:
            return {}
        parts, counted = self._parts, step.views[MAIN_VIEW].weight
        towards = self._towards(step, parts)
        features, _ = parts.tap.features(step, POLICY, parts.student)
        parts.tap.forget()
        with torch.autocast(features.device.type, enabled=False):
            scores = agreement(parts.head(features.float()), towards)
        loss, score = step.mean(1 - scores, counted), step.mean(scores, counted).detach()
        self._measured = {"crepa_loss": loss.detach(), "crepa_alignment_score": score}
        if self.cut_off is None:
            return {"alignment_loss": weight * loss}
        if step.training:
            self.cut_off.update(step.all_reduce(score) / step.draws.world_size)
        return {"alignment_loss": weight * self.cut_off.factor(loss) * loss}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        if self._parts is None:
            return {}
        weight = torch.tensor(self._weight(step), device=step.batch.clean.device)
        if self.cut_off is not None:
            weight = weight * self.cut_off.factor(weight)
        return {**self._measured, "crepa_weight": weight}

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        said, self._notes = self._notes, []
        return said

    def state_dict(self) -> dict[str, Any]:
        cut_off = {} if self.cut_off is None else self.cut_off.state_dict()
        return {"position": self._position, "cut_off": cut_off}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._position = int(state["position"])
        if self.cut_off is not None:
            self.cut_off.load_state_dict(state["cut_off"])

    def _weight(self, step: Step) -> float:
        """Held-out data is weighed as the step before it; one sigma a sample has no cleaner view."""
        if self.source == CLEANER and not step.training:
            return 0.0
        return self.schedule.at(step.draws.micro_step if step.training else self._position)

    def _towards(self, step: Step, parts: Parts) -> Tensor:
        """``[B, N, D]`` the teacher's directions on the student's tokens."""
        features, found = parts.source.features(step)
        grid = parts.tap.grid(step)
        if found != grid and not self._resampled:
            self._resampled = True
            shown = " to ".join(" x ".join(map(str, each[1:])) for each in (found, grid))
            self._notes.append(f"feature_alignment: the teacher's features are resampled from {shown} tokens")
        towards = unit(resampled(features.float(), found, grid))
        if self.source == "crepa":
            towards = with_neighbours(towards.unflatten(1, (grid[0], -1)), self.distance, self.tau).flatten(1, 2)
        return towards
