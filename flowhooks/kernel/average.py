"""An exponential moving average of what is trained, and of nothing else: megabytes beside an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn


class WeightAverage:
    """The role ``ema``, over Diffusers' EMAModel.

    Args:
        parameters: name -> trained parameter.
        decay: in [0, 1); 0.9999 for full training, 0.999 for an adapter are usual.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self._parameters = dict(parameters)
        self._model = EMAModel(list(parameters.values()), decay=decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def update(self) -> None:
        """Take in the parameters; call once an optimiser step."""
        self._model.step(self._parameters.values())

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averaged weights are in place inside the block, the trained ones again after it."""
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

    def state_dict(self) -> dict[str, Any]:
        return {
            "updates": self._model.optimization_step,
            "shadow": dict(zip(self._parameters, self._model.shadow_params, strict=True)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._model.optimization_step = int(state["updates"])
        for name, own in zip(self._parameters, self._model.shadow_params, strict=True):
            own.copy_(state["shadow"][name])
