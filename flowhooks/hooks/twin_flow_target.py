"""TwinFlow's target (arXiv 2512.05150): what the averaged weights make of an interval, after a first step along the
data's velocity. Experimental."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowhooks.hooks.target_replacer import refuse_dropout
from flowhooks.hooks.twin_trajectories import bounded, enhanced, residual
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View, at_least_fp32

EMA = "ema"


class TwinFlowTarget(Hook):
    """Targets of the main view's average velocity; where the interval is empty, the plain velocity.

    The target is the policy's own prediction less the :func:`residual`, which is bounded: it asks for a change.

    Args:
        estimate_order: jumps of the averaged weights, N of RCGM.
        delta_t: length of the first step, in sigma.
        target_clamp: the most that a target may differ from the prediction, for each element; None for no limit.
        enhanced_ratio: adds so much of the averaged weights' difference with and without the prompt to the velocity:
            guidance of scale ``1 / (1 - enhanced_ratio)``, learnt by the student.

    Raises:
        ValueError: an option out of range.
        AdapterError: an adapter with dropout; the residual would be a difference of two masks.
    """

    type = "twin_flow_target"

    def __init__(
        self,
        *,
        estimate_order: int = 2,
        delta_t: float = 0.01,
        target_clamp: float | None = 1.0,
        enhanced_ratio: float = 0.0,
    ):
        if estimate_order < 1 or not 0 < delta_t < 0.5:
            raise ValueError(
                f"`estimate_order` must be at least 1 and `delta_t` in (0, 0.5), got {estimate_order} and {delta_t}"
            )
        if not 0 <= enhanced_ratio < 1 or (target_clamp is not None and target_clamp <= 0):
            raise ValueError(
                f"`enhanced_ratio` must be in [0, 1) and `target_clamp` above 0, got {enhanced_ratio} and "
                f"{target_clamp}"
            )
        self.estimate_order, self.delta_t = estimate_order, delta_t
        self.target_clamp, self.enhanced_ratio = target_clamp, enhanced_ratio
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
        rows = list(view.interval_rows)
        if not rows:
            self._measured = {}
            return velocity
        assert view.r_sigma is not None
        predicted = step.predict(view.name).detach()
        known = (view.noisy, view.level, view.r_sigma, velocity, predicted)
        x, t, r, v, u = (at_least_fp32(value[rows]) for value in known)
        condition = view.condition.take(rows)

        def average(state: Tensor, start: Tensor, end: Tensor | None) -> Tensor:
            return step.query(EMA, state, start, condition, r_sigma=end)

        # Asked again, without autocast: divided by the first step, what that rounds off is as large as the rest.
        student = step.query(POLICY, x, t, condition, r_sigma=r)
        asked = residual(average, student, v, x, t, r, order=self.estimate_order, step=self.delta_t)
        change = bounded(asked, self.target_clamp)
        self._measured = {
            "twin_flow_residual": asked.abs().mean(),
            "twin_flow_clamped": (change != asked).float().mean(),
        }
        index = torch.tensor(rows, device=velocity.device)
        return velocity.index_copy(0, index, (u - change).to(velocity.dtype))

    def metrics(self, step: Step) -> dict[str, Tensor]:
        return self._measured

    def _velocity(self, step: Step, view: View) -> Tensor:
        """``[B, ...]`` of the data, guided where that is asked for."""
        if not self.enhanced_ratio:
            return view.velocity
        x, t, size = view.noisy, view.level, len(view.level)
        model: Any = step.model
        both = view.condition.join([model.null_condition] * size)
        t = torch.cat([t, t])
        conditional, unconditional = step.query(EMA, torch.cat([x, x]), t, both, r_sigma=t).chunk(2)
        return enhanced(view.velocity, conditional, unconditional, self.enhanced_ratio).to(view.velocity.dtype)
