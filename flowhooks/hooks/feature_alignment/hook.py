"""Pulls the features of an early block towards a teacher's; one hook serves every teacher.

The teacher of REPA (arXiv 2410.06940) is a frozen vision model, which CREPA (2506.09229) applies to neighbouring frames
too; that of LayerSync (2510.12581) is a deeper block of the same pass, that of Self-Flow (2603.06507) the averaged
weights on a cleaner view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.autocast import without_autocast
from flowhooks.hooks.feature_alignment import FeatureAlignmentSpec
from flowhooks.hooks.feature_alignment.alignment import (
    SimilarityCutOff,
    WeightSchedule,
    agreement,
    resampled,
    unit,
    with_neighbours,
)
from flowhooks.hooks.feature_alignment.sources import CLEANER, PASSES, Parts, build_parts
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW, POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step


class FeatureAlignment(FeatureAlignmentSpec, Hook):
    """Adds ``weight * mean over tokens and samples of 1 - cos(project(h), z)`` as ``alignment_loss``.

    ``h`` are the policy's image tokens on the main view after a block, captured in its ordinary forward; ``z`` are the
    teacher's. The projector is trained; it is in checkpoints but not in exported files.

    Raises:
        ModelError: on attaching, an option that the source needs missing, a block that is not there or not deeper, or a
            teacher that cannot be used.
    """

    health = "crepa_alignment_score"
    # The same hook serves runs that never say CREPA, such as Self-Flow.
    health_label = "alignment score"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blocks = {"block_index": self.block_index, "teacher_block_index": self.teacher_block_index}
        deep = 0 if self.source == "layersync" else 3
        self.depth = deep if self.projector_depth is None else self.projector_depth
        self.schedule = WeightSchedule(
            self.weight, self.scheduler, self.warmup_steps, self.decay_steps, self.weight_end, self.cutoff_step
        )
        limit = self.similarity_threshold
        self.cut_off = None if limit is None else SimilarityCutOff(limit, self.similarity_ema_decay)
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
                session.model,
                stack,
                self.source,
                self.blocks,
                self.encoder,
                width=self.projector_width,
                depth=self.depth,
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
        with without_autocast(features):
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
        weight = torch.full((), self._weight(step), device=step.batch.clean.device)
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
        """Weighs held-out data like the step before it; with one sigma per sample there is no cleaner view."""
        if self.source == CLEANER and not step.training:
            return 0.0
        return self.schedule.at(step.draws.micro_step if step.training else self._position)

    def _towards(self, step: Step, parts: Parts) -> Tensor:
        """``[B, N, D]`` the teacher's directions on the student's tokens."""
        features, found = parts.source.features(step)
        grid = parts.tap.grid(step, parts.student)
        if found != grid and not self._resampled:
            self._resampled = True
            shown = " to ".join(" x ".join(map(str, each[1:])) for each in (found, grid))
            self._notes.append(f"feature_alignment: the teacher's features are resampled from {shown} tokens")
        towards = unit(resampled(features.float(), found, grid))
        if self.source == "crepa":
            towards = with_neighbours(
                towards.unflatten(1, (grid[0], -1)), self.adjacent_distance, self.adjacent_tau
            ).flatten(1, 2)
        return towards
