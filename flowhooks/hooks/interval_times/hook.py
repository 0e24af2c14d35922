"""Chooses the interval of each sample, for models that learn flow maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.hooks.interval_times import IntervalTimesSpec
from flowhooks.hooks.timestep_schedule.hook import shift_sigma
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.random import Draws
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import Path, Sigma, View, concatenate
from flowhooks.transfer import sent

UNIFORM, ZERO, MIXTURE = "uniform", "zero", "mixture"
DIFFUSION, TO_DATA, FREE = 0, 1, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class IntervalTime(Sigma):
    """An interval from one sigma to another.

    Args:
        level: ``[B]`` t, where it starts.
        end: ``[B]`` r, at or below t.
        rows: indices of samples whose interval is not empty, known without waiting for the device.
    """

    end: Tensor
    rows: tuple[int, ...]

    @property
    def arguments(self) -> Mapping[str, Any]:
        ordered = (self.end <= self.level) & (self.level > 0)
        torch._assert_async(ordered.all(), "an interval must end at or below its start")
        return {"r_sigma": self.end}

    def join(self, others: Sequence[Any]) -> IntervalTime:
        every, start, rows = [self, *others], 0, []
        for each in every:
            rows += [start + row for row in each.rows]
            start += len(each.level)
        level, end = (concatenate([getattr(each, name) for each in every]) for name in ("level", "end"))
        return IntervalTime(level=level, end=end, rows=tuple(rows))


def interval_of(view: View) -> IntervalTime:
    """The time of a view, for a hook that needs ``r_sigma``."""
    assert isinstance(view.time, IntervalTime), f"view {view.name!r} has no interval"
    return view.time


def called_rows(model: Any, interval: IntervalTime) -> list[int]:
    """Return the rows that a network is called for: those whose interval is not empty. Where weights are sharded over
    processes and this one has none, the first row stands in, since all of them must call; what it gives is not used."""
    return list(interval.rows) or ([0] if getattr(model, "sharded", False) else [])


def uniform_ends(t: Tensor, u: Tensor, least: float) -> Tensor:
    """``r = u * max(t - least, 0)`` ``[B]`` for ``u`` in [0, 1): below ``t`` by at least ``least`` where there is
    room."""
    return u * (t - least).clamp(min=0)


def branches(count: int, diffusion: float, to_data: float, offset: Tensor, order: Tensor) -> Tensor:
    """``[count]`` of DIFFUSION, TO_DATA or FREE in these shares, by systematic sampling.

    Shares hold on average whatever the batch, one sample included; no batch is off by more than one sample per branch.

    Args:
        diffusion, to_data: shares; the rest is FREE.
        offset: in [0, 1), random.
        order: a permutation of ``count``, random.
    """
    points = (torch.arange(count) + offset) / count
    found = (points >= diffusion).long() + (points >= diffusion + to_data).long()
    return found[order]


class IntervalTimes(IntervalTimesSpec, Hook):
    """Gives the main view an :class:`IntervalTime` as its time."""

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        main, draws = views["main"], step.draws
        if self.r_timestep_sampler == MIXTURE:
            return {**views, "main": self._mixed(step, main)}
        everyone = len(main.level) * draws.world_size
        u = draws.local_rows(torch.rand(everyone, generator=draws.shared("interval")))
        u = sent(u, main.level.device, main.level.dtype)
        to_data = self.r_timestep_sampler == ZERO
        r = torch.zeros_like(u) if to_data else uniform_ends(main.level, u, self.min_interval_ratio)
        time = IntervalTime(level=main.level, end=r, rows=tuple(range(len(r))))
        return {**views, "main": replace(main, time=time)}

    def metrics(self, step: Step) -> dict[str, Tensor]:
        view = step.views["main"]
        t, r = view.level, interval_of(view).end
        return {
            "anyflow_timestep": t.mean(),
            "anyflow_r_timestep": r.mean(),
            "anyflow_interval": (t - r).mean(),
        }

    def _mixed(self, step: Step, main: View) -> View:
        clean = step.batch.clean
        shares = self.diffusion_ratio, self.zero_ratio
        shift = step.model.shift(clean) if self.shift == "scheduler" else float(self.shift)
        t, r, rows = mixture(len(clean), step.draws, shares, shift, step.model.sigma_range)
        t, r = (sent(value, clean.device, clean.dtype) for value in (t, r))
        path = Path(clean=clean, noise=step.draws.normal_like(clean, "noise"))
        return replace(main, state=path, time=IntervalTime(level=t, end=r, rows=rows))


def mixture(
    count: int, draws: Draws, shares: tuple[float, float], shift: float, sigma_range: tuple[float, float]
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """``t`` and ``r`` ``[count]`` on the CPU, and the rows where r < t."""
    everyone = count * draws.world_size
    generator = draws.shared("interval")
    low, high = sigma_range
    pair = low + (high - low) * shift_sigma(torch.rand(2, everyone, generator=generator), shift)
    # Two equal draws would make an interval of length 0 in a branch that has none.
    t = pair.amax(0).clamp(min=1e-4)
    offset = torch.rand((), generator=generator)
    branch = branches(everyone, *shares, offset, torch.randperm(everyone, generator=generator))
    r = torch.where(branch == DIFFUSION, t, torch.where(branch == TO_DATA, 0.0, pair.amin(0).clamp(max=t - 1e-4)))
    own = draws.local_rows(branch != DIFFUSION).numpy()
    return draws.local_rows(t), draws.local_rows(r), tuple(i for i, wide in enumerate(own) if wide)
