"""Keeps an exponential moving average of the trained weights only, which costs megabytes beside an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from flowhooks.hooks.swapping import swapped
from flowhooks.hooks.weight_average import WeightAverageSpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session
from flowhooks.sharding import local

EMA = "ema"
#: Bytes of the weights that are averaged at once.
_COPIED = 1 << 26


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

    @torch.no_grad()
    def updated(self) -> None:
        """Takes the step of EMAModel, to the bit, on many weights at once."""
        average = self._model
        average.optimization_step += 1
        average.cur_decay_value = average.get_decay(average.optimization_step)
        parameters: list[Any] = list(self._parameters.values())
        for some in _portions(average.shadow_params):
            # Of sharded weights each process averages its rows.
            shadow, trained = (list(map(local, each[some])) for each in (average.shadow_params, parameters))
            difference = torch._foreach_sub(shadow, trained)
            torch._foreach_mul_(difference, 1 - average.cur_decay_value)
            torch._foreach_sub_(shadow, difference)

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self._model.optimization_step,
            "shadow": dict(zip(self._parameters, self._model.shadow_params, strict=True)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._model.optimization_step = int(state["updates"])
        for name, own in zip(self._parameters, self._model.shadow_params, strict=True):
            own.copy_(state["shadow"][name])

    def _swapped(self) -> AbstractContextManager[None]:
        return swapped(self._parameters, self._model.shadow_params)


def _portions(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yields parts of a list that are small enough for a copy of each."""
    start = held = 0
    for i, tensor in enumerate(tensors):
        if held and held + tensor.nbytes > _COPIED:
            yield slice(start, i)
            start, held = i, 0
        held += tensor.nbytes
    yield slice(start, len(tensors))


def averaged(session: Session) -> AbstractContextManager[None]:
    """Puts the averaged weights in place inside the block, if the session keeps an average."""
    return session.roles[EMA]() if EMA in session.roles else nullcontext()
