"""Sets the target of the prediction over an interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import AdapterError
from flowhooks.hooks import flow_maps
from flowhooks.hooks.asking import exact_velocity
from flowhooks.hooks.interval_times.hook import called_rows, interval_of
from flowhooks.hooks.target_replacer import TargetReplacerSpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import POLICY
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View, at_least_fp32
from flowhooks.transfer import picked, whole_numbers

LINEAR, TEACHER, FLOW_MAP, SHORTCUT = "linear", "online_teacher", "flow_map", "shortcut"
DATA, REFERENCE = "data", "reference"
NONE, BRANCH, SAMPLE = "none", "branch", "sample"
#: Keeps a sample of loss zero out of a division (arXiv 2505.13447, sec. 4.3).
SMALL = 1e-3


class TargetReplacer(TargetReplacerSpec, Hook):
    """Sets the target of the main view's average velocity; where the interval is empty, the plain velocity.

    Raises:
        AdapterError: differences of an adapter with dropout, which would be differences of two masks.
    """

    health = "anyflow_loss"
    # A target that does not move is exact from the first step on.
    patience = 1

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        if self.target_mode == FLOW_MAP:
            refuse_dropout(session.adapter, "target_mode 'flow_map'")
        if self.guidance_scale != 1:
            model: Any = session.model
            model.encode_null_conditions()
        yield

    def target(self, step: Step, view: View) -> Tensor | None:
        if view.name != "main":
            return None
        return self._target(step, view, interval_of(view).end)

    def error(self, step: Step, view: View, error: Tensor) -> Tensor:
        if view.name != "main":
            return error
        factor = torch.full_like(view.level, self.loss_weight)
        if self.weighting == "sigma":
            factor = factor * flow_maps.sigma_weight(view.level)
        loss = error.detach().flatten(1).mean(1).float()
        if self.rescale == SAMPLE:
            factor = factor / (loss + SMALL)
        if self.rescale == BRANCH:
            r = interval_of(view).end
            branch = torch.where(r == view.level, 0, torch.where(r == 0, 1, 2))
            factor = factor * flow_maps.balanced(loss, branch, self.rescale_floor, step.all_reduce)
        return error * flow_maps.expand_as_batch(factor, error)

    def metrics(self, step: Step) -> dict[str, Tensor]:
        view = step.views["main"]
        unscaled = (step.predict("main") - step.target("main")).square().flatten(1).mean(1)
        return {
            "anyflow_loss": step.mean(unscaled, view.weight),
            "anyflow_r_sensitivity": self._sensitivity(step, view),
        }

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        if self.target_mode != TEACHER or metrics.get("anyflow_r_sensitivity") != 0:
            return []
        return [
            "anyflow_r_sensitivity is 0: the teacher's target is the same wherever the interval ends, so no flow map "
            "can be learned; raise `teacher_rollout_steps` above 1, or set `target_mode` to 'flow_map'"
        ]

    def _target(self, step: Step, view: View, r: Tensor) -> Tensor:
        """``[B, ...]`` with the view's intervals ending at ``r``."""
        whole = self._velocity(step, view)
        rows = called_rows(step.model, interval_of(view))
        if not rows or self.target_mode == LINEAR:
            return whole
        x, t, r, v = (at_least_fp32(picked(value, rows)) for value in (view.noisy, view.level, r, whole))
        condition = view.condition.take(rows)
        if self.target_mode == TEACHER:
            found = flow_maps.rollout_target(_field(step, REFERENCE, condition), x, t, r, self.teacher_rollout_steps)
        elif self.target_mode == SHORTCUT:
            found = flow_maps.shortcut_target(_field(step, "ema", condition), x, t, r)
        else:
            h = (self.difference_ratio * (t - r)).clamp(min=self.difference_step)
            found = flow_maps.flow_map_target(_field(step, POLICY, condition), v, x, t, r, h)
        if self.guidance_scale != 1:
            model: Any = step.model
            null = model.null_conditions(condition)
            found = flow_maps.guided(found, _field(step, POLICY, null)(x, t, r), self.guidance_scale)
        if not interval_of(view).rows:
            return whole
        return whole.index_copy(0, whole_numbers(rows, whole.device), found.to(whole.dtype))

    def _velocity(self, step: Step, view: View) -> Tensor:
        """``[B, ...]`` of the path through the view's states."""
        if self.target_mode not in (FLOW_MAP, SHORTCUT) or self.velocity == DATA:
            return view.velocity
        return exact_velocity(step, REFERENCE, view.noisy, view.level, view.condition).to(view.velocity.dtype)

    def _sensitivity(self, step: Step, view: View) -> Tensor:
        """Mean absolute change of the target when every interval ends halfway, of the rows that have an interval; NaN
        without any."""
        rows = list(interval_of(view).rows)
        if rows and self.target_mode == LINEAR:
            return torch.zeros((), device=view.level.device)
        if not called_rows(step.model, interval_of(view)):
            return torch.full((), float("nan"), device=view.level.device)
        other = self._target(step, view, (view.level + interval_of(view).end) / 2)
        if not rows:
            return torch.full((), float("nan"), device=view.level.device)
        return (picked(other, rows) - picked(step.target("main"), rows)).abs().float().mean()


def refuse_dropout(adapter: Any, who: str) -> None:
    """Raises AdapterError for an adapter with dropout where predictions are subtracted."""
    if adapter is not None and adapter.config.get("dropout"):
        raise AdapterError(
            f"`adapter.dropout` is {adapter.config['dropout']}; {who} takes differences of two predictions, which "
            "dropout would make differences of two masks; set it to 0"
        )


def _field(step: Step, role: str, condition: Any) -> flow_maps.Field:
    """A role's velocity at any state of these samples; twice as many states are two of each."""

    def field(x: Tensor, t: Tensor, r: Tensor | None) -> Tensor:
        times = len(x) // condition.size
        repeated = condition if times == 1 else condition.join([condition] * (times - 1))
        return exact_velocity(step, role, x, t, repeated, r_sigma=r)

    return field
