"""Trains where the mask is white: weighs the per-element error by the mask and leaves out pairs whose mask is empty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from flowhooks.hooks.mask_reducer import MaskReducerSpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View

#: Percent; a running mean of 100 may end a rounding below it.
ALL_EMPTY = 99.999


def dilate(mask: Tensor, cells: int) -> Tensor:
    """Grow a mask ``[B, 1, h, w]``, or ``[B, 1, t]`` of sound, by ``cells`` latent cells on every side: a max-pool of
    ``2 * cells + 1``."""
    pool = F.max_pool2d if mask.dim() == 4 else F.max_pool1d
    return pool(mask, 2 * cells + 1, stride=1, padding=cells) if cells else mask


def counted(mask: Tensor) -> Tensor:
    """``[B]``: 1 where a mask has any weight at all, else 0."""
    return (mask.flatten(1).amax(1) > 0).to(mask.dtype)


class MaskReducer(MaskReducerSpec, Hook):
    """Puts the batch's mask into every view and multiplies every error by it."""

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        if step.batch.mask is None:
            raise ValueError("the batch has no `mask`; give one to Batch(mask=...) as [B, 1, h, w] on the latent grid")
        mask = dilate(step.batch.mask, self.mask_dilate)
        packed, weight = step.model.pack_mask(mask, step.batch.clean), counted(mask)
        return {name: replace(view, mask=packed, weight=weight) for name, view in views.items()}

    def error(self, step: Step, view: View, error: Tensor) -> Tensor:
        return error if view.mask is None else error * view.mask

    def metrics(self, step: Step) -> dict[str, Tensor]:
        mask, weight = step.views["main"].mask, step.views["main"].weight
        assert mask is not None and weight is not None, "views() put both in"
        return {"mask_coverage": mask.mean(), "mask_empty_pct": 100 * (1 - weight).mean()}

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        if metrics.get("mask_empty_pct", 0.0) < ALL_EMPTY:
            return []
        return [
            "mask_reducer: every mask of the batches so far is black on the latent grid, so nothing is compared or "
            "trained where masks count; white is what trains: see `flowhooks inspect`"
        ]
