"""Let stock pipelines sample flow maps: their network gets the sigma at which the scheduler's step will end.

``FlowMatchEulerDiscreteScheduler.step`` already is the flow-map step ``x_r = x_t - (t - r) u(x_t, t, r)``; only the
network needs r, the next sigma (arXiv 2605.13724). So the scheduler is not changed. Its own sigmas are read
while the pipeline samples, so it does not matter what shifted them, or who copied, rebuilt or saved it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.interval import Interval, Span
from flowhooks.probe.runs import find_networks
from flowhooks.probe.times import Time


class FlowMapSchedulerProxy:
    """Reads the interval of the step that a pipeline is about to take.

    Args:
        pipe: the pipeline. Its scheduler is looked up again at every step, so it may be replaced at any time. Where
            another pipeline that shares a network with it is running, the scheduler of that one is read.
        times: times of the network's contract.
    """

    def __init__(self, pipe: Any, times: Sequence[Time]):
        self.pipe = pipe
        self.time = next(time for time in times if not time.second)

    def __call__(self, arguments: Mapping[str, Any]) -> Span | None:
        """Return the interval of a network call with these arguments; None while the scheduler is not sampling.

        Raises:
            ModelError: the scheduler's step is not a flow-map step.
        """
        scheduler = (_running(self.pipe) or self.pipe).scheduler
        if getattr(scheduler, "num_inference_steps", None) is None:
            return None
        require_first_order(scheduler)
        index = self._index(scheduler, arguments)
        if index + 1 >= len(scheduler.sigmas):
            return None
        start, end = (float(scheduler.sigmas[index + k]) for k in (0, 1))
        if scheduler.config.get("invert_sigmas"):
            start, end = 1 - start, 1 - end
        return Span(start=start, end=end, shift=_shift(scheduler))

    def _index(self, scheduler: Any, arguments: Mapping[str, Any]) -> int:
        """Return the index of the step. The scheduler has it after its first step; before that, a pipeline that starts
        midway may have set it."""
        if scheduler.step_index is not None:
            return int(scheduler.step_index)
        if scheduler.begin_index is not None:
            return int(scheduler.begin_index)
        given = arguments[self.time.name]
        asked = float(given.flatten()[0]) if isinstance(given, Tensor) else float(given)
        levels = torch.as_tensor(scheduler.sigmas)[:-1].float().cpu()
        if scheduler.config.get("invert_sigmas"):
            levels = 1 - levels
        return int((self.time.of(levels, _shift(scheduler)) - asked).abs().argmin())


def _running(pipe: Any) -> Any:
    """Return the innermost pipeline on the call stack that has a scheduler and a network of ``pipe``; None where other
    code calls the network.

    A network does not know its caller, and the schedulers of two pipelines that share it do not know each other.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        if isinstance(caller, DiffusionPipeline) and hasattr(caller, "scheduler"):
            networks = find_networks(pipe).values()
            if any(part is network for part in vars(caller).values() for network in networks):
                return caller
        frame = frame.f_back
    return None


@contextmanager
def telling_steps(interval: Interval, pipe: Any, times: Sequence[Time]) -> Iterator[None]:
    """Give calls of the network by the pipeline itself their interval, inside the block."""
    before, interval.schedule = interval.schedule, FlowMapSchedulerProxy(pipe, times)
    try:
        yield
    finally:
        interval.schedule = before


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
def first_order(pipe: Any) -> Iterator[None]:
    """Give a pipeline whose scheduler cannot sample a flow map a ``FlowMatchEulerDiscreteScheduler`` of the same shift,
    static or dynamic, inside the block."""
    scheduler = pipe.scheduler
    try:
        require_first_order(scheduler)
    except ModelError:
        scheduler = _of_first_order(scheduler)
    with scheduled(pipe, scheduler):
        yield


@contextmanager
def scheduled(pipe: Any, scheduler: Any) -> Iterator[None]:
    """Let the pipeline sample with this scheduler inside the block."""
    before = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = before


def _of_first_order(other: Any) -> FlowMatchEulerDiscreteScheduler:
    """Return a scheduler with those settings of another one that mean the same for it."""
    config: Mapping[str, Any] = other.config
    known = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
    shared = {name: value for name, value in config.items() if name in known}
    shift = config.get("flow_shift") or config.get("shift") or 1.0
    scheduler = FlowMatchEulerDiscreteScheduler(**{**shared, "shift": shift, "stochastic_sampling": False})
    if hasattr(other, "scale_model_input"):
        # Pipelines older than flow matching ask for both.
        vars(scheduler).update(scale_model_input=_unscaled, init_noise_sigma=1.0)
    return scheduler


def _unscaled(sample: Tensor, timestep: Any = None) -> Tensor:
    return sample


def _shift(scheduler: Any) -> float:
    """Return the shift that mapped the schedule's even times to its sigmas, computed from its middle."""
    middle = len(scheduler.timesteps) // 2
    sigma = float(scheduler.sigmas[middle])
    even = float(scheduler.timesteps[middle]) / scheduler.config.num_train_timesteps
    if not 0 < sigma < 1 or not 0 < even < 1:
        return 1.0
    return sigma * (1 - even) / (even * (1 - sigma))
