"""Give a pipeline a scheduler whose steps are those of a flow map, and whose network is told where they end.

``FlowMatchEulerDiscreteScheduler.step`` already is the flow-map step ``x_r = x_t - (t - r) u(x_t, t, r)``; only the
network needs r, the next sigma (arXiv 2605.13724).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from flowhooks.errors import ModelError
from flowhooks.flow_map.loader import put_back
from flowhooks.flow_map.scheduler import FlowMapScheduler, Telling, like
from flowhooks.flow_map.step_time import FlowMapError
from flowhooks.probe.interval import Interval


def require_first_order(scheduler: Any) -> None:
    """Raise ModelError, with the name and the remedy, for a scheduler whose step is not ``x + (r - t) u``."""
    name = type(scheduler).__name__
    if not isinstance(scheduler, (FlowMatchEulerDiscreteScheduler, FlowMapEulerDiscreteScheduler)):
        raise ModelError(
            f"{name} does not step from one sigma to the next along one prediction (it is stochastic, or combines "
            "several), so it cannot sample a flow map; set `pipe.scheduler = "
            "FlowMatchEulerDiscreteScheduler(shift=...)` with the model's own shift"
        )
    if scheduler.config.get("stochastic_sampling"):
        raise ModelError(
            f"{name} with `stochastic_sampling` adds noise at every step, so it cannot sample a flow map; build it "
            "with `stochastic_sampling=False`"
        )


@contextmanager
def first_order(pipe: Any, interval: Interval | None = None) -> Iterator[None]:
    """Give a pipeline whose scheduler cannot sample a flow map a ``FlowMatchEulerDiscreteScheduler`` of the same shift,
    static or dynamic, inside the block. Only this pipeline may run there.

    Args:
        interval: the second time of its network, which its scheduler then tells where each step ends.
    """
    scheduler = pipe.scheduler
    if interval is None:
        try:
            require_first_order(scheduler)
        except ModelError:
            scheduler = like(scheduler, FlowMatchEulerDiscreteScheduler)
        with scheduled(pipe, scheduler):
            yield
        return
    own = telling(scheduler)
    with scheduled(pipe, own), interval.told_by(own):
        yield


@contextmanager
def telling_steps(pipe: Any) -> Iterator[None]:
    """Let the pipeline tell its network where each step ends inside the block, if its scheduler is of first order."""
    before = pipe.scheduler
    # Another one is refused by the network when the pipeline runs.
    with suppress(ModelError, FlowMapError):
        require_first_order(before)
        pipe.scheduler = FlowMapScheduler.from_scheduler(before)
    try:
        yield
    finally:
        put_back(pipe, before)


def stock_of(scheduler: Any) -> Any:
    """Return a scheduler of Diffusers' own that takes the same steps, for a network without a second time."""
    return scheduler.stock() if isinstance(scheduler, Telling) else scheduler


@contextmanager
def scheduled(pipe: Any, scheduler: Any) -> Iterator[None]:
    """Let the pipeline sample with this scheduler inside the block."""
    before = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = before


def telling(scheduler: Any) -> Any:
    """Return the scheduler of a pipeline that was learned as one that tells where its steps end."""
    if isinstance(scheduler, Telling):
        return scheduler
    try:
        return FlowMapScheduler.from_scheduler(scheduler)
    except FlowMapError:
        # The probe has seen the pipeline take steps of flow matching, whatever its scheduler is called.
        return like(scheduler, FlowMapScheduler)
