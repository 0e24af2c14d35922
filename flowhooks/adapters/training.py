"""Hold a training adapter on a network: a frozen adapter that is on in every forward of the loss, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowhooks.adapters.fit import beneath_others
from flowhooks.adapters.frozen import FrozenAdapter


class TrainingAdapter:
    """Adds the change of a frozen adapter to a network's own layers while a loss is computed.

    Whatever is trained beside it, and each role of the network, is computed on top of it. It is never merged into
    weights, never trained, and in no file that is written.

    It is on where the block says so (:meth:`switched`), and elsewhere in forwards that have a gradient: gradient
    checkpointing runs blocks again in the backward pass, outside every block. Images are sampled without a gradient,
    and so without it.

    Args:
        model: the probed pipeline of the network.
        source: a file, a folder or a Hub id.
        strength: factor of the change that the file states.

    Raises:
        AdapterError: the file is missing, damaged, pickled, of no known format, a DoRA, does not fit the network
            exactly, or changes nothing.
    """

    def __init__(self, model: Any, source: str, *, strength: float = 1.0):
        self.strength = strength
        self._frozen = FrozenAdapter(model.transformer, source, strength=strength, pipeline=model.pipe)
        if self._frozen.config.get("use_dora"):
            raise beneath_others(self._frozen.file)
        self._model = model
        self._on: bool | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must share: the SHA-256 of the file, as :class:`flowhooks.adapters.FrozenAdapter`
        computes it, and the strength."""
        return {"sha256": self._frozen.digest, "strength": self.strength}

    def describe(self) -> Mapping[str, Any]:
        """Return what was loaded, as JSON types."""
        return {**self._frozen.describe(), "strength": self.strength}

    def tensors(self) -> list[Tensor]:
        """Return the tensors that it holds, none of which is trained."""
        return self._frozen.tensors()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hold it on the network inside the block; on exit the network is as before."""
        try:
            with self._frozen.beside(self._is_on, self._model.device):
                yield
        finally:
            self._frozen.detach()

    @contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """Switch it on or off for every forward inside the block."""
        before, self._on = self._on, on
        try:
            yield
        finally:
            self._on = before

    def _is_on(self) -> bool:
        return torch.is_grad_enabled() if self._on is None else self._on
