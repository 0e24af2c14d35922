"""The ordinary flow-matching loss on the data, beside the loss of another method (arXiv 2210.02747, 2403.03206).

With ``x_s = (1 - s) x0 + s e`` of an image ``x0`` of the data, at one noise level ``s`` for the whole sample::

    L_data = mean_b mean_elements[ m (v(x_s, s) - (e - x0))^2 ]          loss += weight * L_data

``m`` is the mask, 1 without one; samples whose mask is empty are not counted.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from flowhooks.hooks.asking import seen_part, trained_velocity
from flowhooks.hooks.flow_matching_loss import FlowMatchingLossSpec
from flowhooks.hooks.interval_times.hook import IntervalTime
from flowhooks.hooks.mask_reducer.hook import counted, dilate
from flowhooks.hooks.timestep_schedule.hook import TimestepSchedule
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import Chunk, Sigma, View

#: Where the prediction comes from: that of the view ``main``, a forward of its own, or a chunk of its own.
MAIN, OWN, DATA = "main", "own", "data"


class FlowMatchingLoss(FlowMatchingLossSpec, Hook):
    """Adds ``weight`` times the flow-matching loss of the data's images to the loss of a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._schedule = TimestepSchedule()

    def data(self, step: Step) -> Chunk:
        """The batch of the data as a chunk, whose loss is added to that of the generated ones."""
        if step.given is None:
            raise ValueError("the step has no batch of the data, which `flow_matching_loss` trains on; pass a `Batch`")
        batch = step.batch
        return Chunk(batch=batch, views={MAIN_VIEW: View.of(batch)}, loss=self._on_data)

    def penalty(self, step: Step) -> dict[str, Tensor]:
        if self.prediction == DATA:
            return {}
        view = step.views[MAIN_VIEW]
        prediction = step.predict(MAIN_VIEW) if self.prediction == MAIN else self._predicted(step, view)
        return {"sft_loss": self.weight * self._loss(step, view, prediction)}

    def _on_data(self, step: Step) -> dict[str, Tensor]:
        step.views = self._schedule.views(step, step.views)
        view = step.views[MAIN_VIEW]
        return {"sft_loss": self.weight * self._loss(step, view, self._predicted(step, view))}

    def _predicted(self, step: Step, view: View) -> Tensor:
        """``[B, ...]`` velocity at the view's noise level, whatever interval or token levels the view has."""
        plain = replace(view, time=Sigma(level=view.level))
        end = view.level if isinstance(view.time, IntervalTime) else None
        return trained_velocity(step, plain.noisy, plain.level, plain.condition, r_sigma=end)

    def _loss(self, step: Step, view: View, prediction: Tensor) -> Tensor:
        """The mean ``[]`` over the counted samples of the global batch, unweighted."""
        error = seen_part(step, prediction - view.velocity, view.condition).square()
        if not self.masked:
            return step.mean(error.flatten(1).mean(1))
        if step.batch.mask is None:
            raise ValueError("the batch has no `mask`; give one to Batch(mask=...) as [B, 1, h, w] on the latent grid")
        mask = dilate(step.batch.mask, self.mask_dilate)
        packed = step.model.pack_mask(mask, step.batch.clean)
        return step.mean((error * packed).flatten(1).mean(1), counted(mask))
