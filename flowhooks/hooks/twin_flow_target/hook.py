"""TwinFlow's target (arXiv 2512.05150): jumps of the averaged weights over an interval, after a first step along the
data's velocity. Experimental."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowhooks.hooks.asking import exact_velocity
from flowhooks.hooks.interval_times.hook import called_rows, interval_of
from flowhooks.hooks.target_replacer.hook import refuse_dropout
from flowhooks.hooks.twin_flow_target import TwinFlowTargetSpec
from flowhooks.hooks.twin_flow_target.trajectories import bounded, enhanced, residual
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View, at_least_fp32
from flowhooks.transfer import picked, whole_numbers

EMA = "ema"


class TwinFlowTarget(TwinFlowTargetSpec, Hook):
    """Sets the target of the main view's average velocity; where the interval is empty, the plain velocity.

    The target is the policy's own prediction less the bounded :func:`residual`.

    Raises:
        AdapterError: an adapter with dropout; the residual would be a difference of two masks.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._measured: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        refuse_dropout(session.adapter, f"{self.type!r}")
        if self.enhanced_ratio:
            model: Any = session.model
            model.encode_null_conditions()
        yield

    def target(self, step: Step, view: View) -> Tensor | None:
        if view.name != "main":
            return None
        velocity = self._velocity(step, view)
        interval = interval_of(view)
        rows = called_rows(step.model, interval)
        self._measured = {}
        if not rows:
            return velocity
        predicted = step.predict(view.name).detach()
        known = (view.noisy, view.level, interval.end, velocity, predicted)
        x, t, r, v, u = (at_least_fp32(picked(value, rows)) for value in known)
        condition = view.condition.take(rows)

        def average(state: Tensor, start: Tensor, end: Tensor | None) -> Tensor:
            return exact_velocity(step, EMA, state, start, condition, r_sigma=end)

        # Asked again, without autocast: divided by the first step, what that rounds off is as large as the rest.
        student = exact_velocity(step, POLICY, x, t, condition, r_sigma=r)
        asked = residual(average, student, v, x, t, r, order=self.estimate_order, step=self.delta_t)
        if not interval.rows:
            return velocity
        change = bounded(asked, self.target_clamp)
        self._measured = {
            "twin_flow_residual": asked.abs().mean(),
            "twin_flow_clamped": (change != asked).float().mean(),
        }
        return velocity.index_copy(0, whole_numbers(rows, velocity.device), (u - change).to(velocity.dtype))

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return self._measured

    def _velocity(self, step: Step, view: View) -> Tensor:
        """Returns the velocity ``[B, ...]`` of the data, guided where ``enhanced_ratio`` is above 0."""
        if not self.enhanced_ratio:
            return view.velocity
        x, t = view.noisy, view.level
        model: Any = step.model
        both = view.condition.join([model.null_conditions(view.condition)])
        t = torch.cat([t, t])
        conditional, unconditional = exact_velocity(step, EMA, torch.cat([x, x]), t, both, r_sigma=t).chunk(2)
        return enhanced(view.velocity, conditional, unconditional, self.enhanced_ratio).to(view.velocity.dtype)
