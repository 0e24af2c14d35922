"""Copies of modules and pipelines, several times as fast as :func:`copy.deepcopy` makes them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from types import FunctionType
from typing import Any
from weakref import ref

from torch import Tensor

#: What :func:`copy.deepcopy` does not copy either.
SHARED = (FunctionType, type, ref)


def copier(original: Any) -> Callable[[], Any]:
    """What makes deep copies of ``original`` as it is now: all but tensors is pickled once.

    Where something cannot be pickled, copies are :func:`copy.deepcopy`'s.
    """
    stream = io.BytesIO()
    writer = _Writer(stream)
    try:
        writer.dump(original)
    except (AttributeError, TypeError, pickle.PicklingError):
        kept = deepcopy(original)
        return lambda: deepcopy(kept)
    tensors, pickled = deepcopy(writer.tensors), stream.getvalue()
    return lambda: _Reader(io.BytesIO(pickled), deepcopy(tensors), writer.shared).load()


class _Writer(pickle.Pickler):
    def __init__(self, stream: io.BytesIO):
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self.shared: list[Any] = []
        self._places: dict[int, tuple[bool, int]] = {}

    def persistent_id(self, thing: Any) -> tuple[bool, int] | None:
        """Whether it is a tensor, and its place among the tensors, or among what is shared."""
        tensor = isinstance(thing, Tensor)
        if not tensor and not isinstance(thing, SHARED):
            return None
        if id(thing) not in self._places:
            found = self.tensors if tensor else self.shared
            self._places[id(thing)] = tensor, len(found)
            found.append(thing)
        return self._places[id(thing)]


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: list[Tensor], shared: list[Any]):
        super().__init__(stream)
        self._tensors, self._shared = tensors, shared

    def persistent_load(self, place: tuple[bool, int]) -> Any:
        tensor, number = place
        return (self._tensors if tensor else self._shared)[number]
