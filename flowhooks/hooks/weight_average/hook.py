"""Keeps an exponential moving average of the trained weights only, which costs megabytes beside an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from flowhooks.hooks.weight_average import WeightAverageSpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session

EMA = "ema"


class WeightAverage(WeightAverageSpec, Hook):
    """Gives the role ``ema``, over Diffusers' EMAModel."""

    former = "average"

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        with session.roles.registered(EMA, self._swapped):
            yield

    def started(self, session: Session) -> None:
        self._parameters = session.parameters()
        values = list(self._parameters.values())
        self._model = EMAModel(values, decay=self.decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def updated(self) -> None:
        self._model.step(self._parameters.values())

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self._model.optimization_step,
            "shadow": dict(zip(self._parameters, self._model.shadow_params, strict=True)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._model.optimization_step = int(state["updates"])
        for name, own in zip(self._parameters, self._model.shadow_params, strict=True):
            own.copy_(state["shadow"][name])

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """Puts the averaged weights in place inside the block, and the trained ones again after it."""
        parameters = list(self._parameters.values())
        trained = [p.data for p in parameters]
        try:
            # Autocast keeps casts by parameter, whatever data the parameter holds.
            torch.clear_autocast_cache()
            for parameter, average in zip(parameters, self._model.shadow_params, strict=True):
                parameter.data = average.to(parameter.device, parameter.dtype)
            yield
        finally:
            torch.clear_autocast_cache()
            for parameter, data in zip(parameters, trained, strict=True):
                parameter.data = data


def averaged(session: Session) -> AbstractContextManager[None]:
    """Puts the averaged weights in place inside the block, if the session keeps an average."""
    return session.roles[EMA]() if EMA in session.roles else nullcontext()
