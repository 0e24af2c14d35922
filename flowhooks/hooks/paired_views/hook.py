"""Adds the rejected side of each pair as its own view, so that it can never reach the model as a reference image."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from flowhooks.hooks.paired_views import PairedViewsSpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import Path, View


def rejected_view(main: View, rejected: Tensor) -> View:
    """``main`` with the rejected latents ``[B, ...]`` in place of the clean ones: same prompt, noise and sigma (arXiv
    2311.12908)."""
    return replace(main, name="rejected", state=Path(clean=rejected, noise=main.noise))


class PairedViews(PairedViewsSpec, Hook):
    """Adds the view ``rejected``."""

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        if step.batch.rejected is None:
            raise ValueError("the batch has no `rejected` latents; give them to Batch(rejected=...)")
        return {**views, "rejected": rejected_view(views["main"], step.batch.rejected)}
