"""Schedulers that tell a flow map's network where each step ends, and refuse to step a network that never asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from diffusers import FlowMapEulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from flowhooks.flow_map.step_time import FlowMapError, StepTime, marked, plain


@dataclass(frozen=True, kw_only=True, eq=False)
class Span:
    """Holds an interval of sigma, from ``start`` down to ``end``.

    Args:
        start, end: ``[B]``, or one number for all.
        shift: the scheduler's shift at this resolution.
    """

    start: Tensor | float
    end: Tensor | float
    shift: float = 1.0


class Telling:
    """Adds to a scheduler what a flow map's network must know of the step to come."""

    #: Index of the step whose end was asked for; ANY for a step of which somebody said that it needs no end.
    _told: int | None
    ANY = -1

    @property
    def timesteps(self) -> Any:
        times = vars(self)["_timesteps"]
        return None if times is None else marked(times, self, None)

    @timesteps.setter
    def timesteps(self, times: Any) -> None:
        self._timesteps, self._told = plain(times), None

    def tell(self, index: int) -> Span:
        """Return the interval of the step with this index.

        Raises:
            FlowMapError: it is not the step to come.
        """
        own: Any = self
        coming = own.step_index if own.step_index is not None else own.begin_index
        if coming is not None and coming != index or not 0 <= index < len(own.sigmas) - 1:
            raise FlowMapError(
                f"the network was called at the time of step {index} of a {type(self).__name__} that is at step "
                f"{coming} of {len(own.sigmas) - 1}; call it at the time of the step that the scheduler takes next"
            )
        self._told = index
        start, end = (float(own.sigmas[index + k]) for k in (0, 1))
        if own.config.get("invert_sigmas"):
            start, end = 1 - start, 1 - end
        return Span(start=start, end=end, shift=_shift(own))

    def index_at(self, time: Any, unit: Any) -> int:
        """Return the index of the step to come. Before the first step, where the pipeline did not say it, that is the
        step that starts at this time, a tensor or a number in the unit of a :class:`TimeUnit`."""
        own: Any = self
        coming = own.step_index if own.step_index is not None else own.begin_index
        if coming is not None:
            return int(coming)
        levels = torch.as_tensor(own.sigmas)[:-1].float().cpu()
        if own.config.get("invert_sigmas"):
            levels = 1 - levels
        # A given frame has a time of its own, at which no step starts.
        asked = torch.as_tensor(time).float().cpu().unique()
        starts = unit.of(levels, _shift(own)).float()
        return int((starts - asked[:, None]).abs().argmin()) % len(starts)

    def pass_over(self) -> None:
        """Let the step to come be taken although no network asks where it ends."""
        self._told = self.ANY

    def stock(self) -> Any:
        """Return a scheduler of Diffusers' own class with the same settings, which tells nothing."""
        own: Any = self
        return like(own, next(base for base in TELLING if isinstance(own, base)))

    def require_told(self, index: int) -> None:
        """Raise FlowMapError for a step whose end nobody asked for."""
        if self._told == self.ANY:
            self._told = index
        if self._told != index:
            raise FlowMapError(
                f"a {type(self).__name__} is to take step {index}, and no network asked where that ends: this "
                "pipeline's network is no flow map, so what it predicts is not meant for such a step. Put the flow "
                "map onto it with `load_flow_map(pipe, FOLDER)`, or sample with `pipe.scheduler.stock()`"
            )


def _checked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a scheduler's ``step`` that refuses a step whose end its network does not know."""

    # Pipelines look at the signature.
    @wraps(step)
    def checked(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs = plain(kwargs)
        times = kwargs.get("per_token_timesteps")
        # Tokens of a given frame are at time 0 and stay.
        if times is not None and bool(((times != plain(timestep)) & (times != 0)).any()):
            raise FlowMapError("a flow map's steps end at one time for all tokens; leave `per_token_timesteps` out")
        if self.step_index is None:
            self._init_step_index(plain(timestep))
        # A pipeline may step a copy of its scheduler with the times of its own, for sound beside images.
        source = timestep.source if isinstance(timestep, StepTime) else self
        source.require_told(self.step_index)
        return step(self, plain(model_output), plain(timestep), plain(sample), *args, **kwargs)

    return checked


class EqualToBase(type):
    """Makes classes equal the class of Diffusers that they add to: pipelines ask ``type(self.scheduler) == ...``."""

    def __eq__(cls, other: Any) -> bool:
        return other is cls or other is cls.__mro__[2]

    def __hash__(cls) -> int:
        return hash(cls.__mro__[2])


class FlowMapScheduler(Telling, FlowMatchEulerDiscreteScheduler, metaclass=EqualToBase):
    """A ``FlowMatchEulerDiscreteScheduler`` that tells a flow map's network where each step ends.

    Its step already is that of a flow map, ``x_r = x_t - (t - r) u(x_t, t, r)``, and stays the same to the last bit.
    """

    # The name that a saved pipeline's model_index.json has for it.
    __module__ = __name__.partition(".")[0]
    step = _checked(FlowMatchEulerDiscreteScheduler.step)

    @staticmethod
    def from_scheduler(scheduler: SchedulerMixin) -> Any:
        """Return a scheduler with the settings of a pipeline's own that tells where each step ends.

        One that adds noise at each step or combines several predictions (UniPC, Heun) becomes an Euler scheduler of
        the same shift, static or dynamic, since a flow map cannot be sampled otherwise.

        Raises:
            FlowMapError: it is not a scheduler of flow matching, or has steps of its own.
        """
        if isinstance(scheduler, Telling):
            return like(scheduler, type(scheduler))
        for base, telling in TELLING.items():
            if type(scheduler) == base:  # noqa: E721 - a class may say that it equals another
                return like(scheduler, telling)
            if isinstance(scheduler, base):
                raise FlowMapError(
                    f"{type(scheduler).__name__} changes {base.__name__}, and a flow map needs the latter's steps; "
                    f"give `{base.__name__}.from_config(pipe.scheduler.config)`"
                )
        config = {} if isinstance(scheduler, type) else getattr(scheduler, "config", {})
        if isinstance(scheduler, type) or not (
            type(scheduler).__name__.startswith("Flow") or config.get("prediction_type") == "flow_prediction"
        ):
            name = scheduler.__name__ if isinstance(scheduler, type) else type(scheduler).__name__
            raise FlowMapError(
                f"{name} is no scheduler that is set up for flow matching, so it has no steps of a flow map; give a "
                "`FlowMatchEulerDiscreteScheduler` with the model's own shift"
            )
        return like(scheduler, FlowMapScheduler)


class EvenFlowMapScheduler(Telling, FlowMapEulerDiscreteScheduler, metaclass=EqualToBase):
    """A ``FlowMapEulerDiscreteScheduler`` that tells a flow map's network where each step ends."""

    __module__ = __name__.partition(".")[0]
    step = _checked(FlowMapEulerDiscreteScheduler.step)


#: Class of Diffusers -> the class here that adds the telling.
TELLING: dict[type, Any] = {
    FlowMatchEulerDiscreteScheduler: FlowMapScheduler,
    FlowMapEulerDiscreteScheduler: EvenFlowMapScheduler,
}


def like(scheduler: Any, kind: Any) -> Any:
    """Return a scheduler of another class with those settings that mean the same for it."""
    config, known = scheduler.config, inspect.signature(kind.__init__).parameters
    settings = {name: value for name, value in config.items() if name in known}
    # A scheduler may have been given another shift since it was built.
    settings["shift"] = getattr(scheduler, "_shift", None) or config.get("flow_shift") or config.get("shift") or 1.0
    if "stochastic_sampling" in known:
        settings["stochastic_sampling"] = False
    made = kind(**settings)
    if hasattr(scheduler, "scale_model_input"):
        # Pipelines older than flow matching ask for both.
        vars(made).update(scale_model_input=unscaled, init_noise_sigma=1.0)
    return made


def unscaled(sample: Any, timestep: Any = None) -> Any:
    """Return a sample as it is, as schedulers of flow matching hand it to the network."""
    return sample


def _shift(scheduler: Any) -> float:
    """Return the shift that mapped the schedule's even times to its sigmas, computed from its middle."""
    times = plain(scheduler.timesteps)
    sigma = float(scheduler.sigmas[len(times) // 2])
    even = float(times[len(times) // 2]) / scheduler.config.num_train_timesteps
    if not 0 < sigma < 1 or not 0 < even < 1:
        return 1.0
    return sigma * (1 - even) / (even * (1 - sigma))
