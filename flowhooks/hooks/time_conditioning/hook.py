"""Gives any pipeline's network a second time, the end of an interval, so that it can learn a flow map."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from flowhooks.documents.spec import properties_of
from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import has_second_time, pass_over_steps_of
from flowhooks.hooks.time_conditioning import TimeConditioningEnablerSpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session
from flowhooks.probe.interval import Interval
from flowhooks.probe.runs import find_networks
from flowhooks.sampling.flow_map_steps import telling_steps


class TimeConditioningEnabler(TimeConditioningEnablerSpec, Hook):
    """Blends ``(1 - g) E_t(t) + g E_d(d)`` in the network's time embedder (arXiv 2605.13724).

    While it is attached, ``model.predict`` accepts ``r_sigma``, and the pipeline has a scheduler that tells the network
    where each step ends; under another one the network refuses to sample. ``E_d`` is trained and saved in
    ``flowhooks_modules.safetensors``. A network whose pipeline already passes a second time keeps it, and these options
    do not apply: defaults are ignored there, and any other value must be the network's own.

    Raises:
        ModelError: on attaching, a second time already there, no time embedder, or an option that contradicts the
            network's own second time.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.interval: Interval | None = None

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        model: Any = session.model
        if model.native_second_time:
            self._require_native(model)
            yield
            return
        if model.interval is not None or has_second_time(model.transformer):
            raise ModelError("this network has a second time already; attach one `time_conditioning` only")
        if model.anatomy.time_embedder is None:
            raise ModelError(
                f"{model.contract.pipeline}'s network has no module that maps the time alone, so it cannot be given a "
                "second one"
            )
        self.interval = Interval(
            model.transformer,
            model.anatomy.time_embedder,
            model.contract.times,
            gate=self.gate_value,
            deltatime_type=self.deltatime_type,
            timestep_scale=self.timestep_scale,
        )
        with ExitStack() as stack:
            stack.enter_context(self.interval.attached())
            stack.enter_context(telling_steps(model.pipe))
            experts = find_networks(model.pipe).values()
            stack.callback(pass_over_steps_of(each for each in experts if each is not model.transformer))
            model.interval = self.interval
            try:
                yield
            finally:
                model.interval = None

    def _require_native(self, model: Any) -> None:
        """Raise ModelError for an option that somebody set to other than what the network has natively."""
        config = model.transformer.config
        second = next(time for time in model.contract.times if time.second)
        native = {
            "gate_value": config.get("gate_value"),
            "deltatime_type": config.get("deltatime_type"),
            "timestep_scale": second.scale,
        }
        asked, options = self.options(), properties_of(type(self))
        for name, own in native.items():
            if asked[name] in (options[name]["default"], own):
                continue
            found = "its network has no such setting" if own is None else f"its network was built with {own!r}"
            raise ModelError(
                f"`{name}` is {asked[name]!r}, but {model.contract.pipeline} gives a second time by itself and "
                f"{found}; leave `{name}` out"
            )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        if self.interval is None:
            yield
            return
        with self.interval.off():
            yield

    def modules(self) -> dict[str, nn.Module]:
        return {} if self.interval is None else {"delta_embedder": self.interval.delta_embedder}
