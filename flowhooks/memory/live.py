"""Bytes of the tensors that are alive, by whose they are, and the moment at which they are most."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

CPU = torch.device("cpu")
#: Whose bytes are that nobody was named for: what a step computes.
STEP = "step"


class Live(TorchDispatchMode):
    """Counts every storage that an operator returns inside the block until the last tensor on it is gone.

    Args:
        device: whose bytes are counted.

    It asks tensors for their sizes only, so it counts on the meta device as on a real one. An operator's own scratch
    memory, which it frees before it returns, is not seen.

    Attributes:
        held: part -> bytes that are alive.
        phase: what is being done, in words; set by the caller.
        peak: the most bytes that were alive at once, with what was counted before the block.
        peak_phase, peak_held: ``phase`` and ``held`` at that moment.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        super().__init__()
        self._device = device
        self.held: Counter[str] = Counter()
        self.phase = self.peak_phase = ""
        self.peak = 0
        self.peak_held: Counter[str] = Counter()
        self._now = 0
        #: Storage -> (bytes, part).
        self._seen: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()

    @property
    def now(self) -> int:
        """Bytes that are alive."""
        return self._now

    def own(self, part: str, tensors: Iterable[Tensor]) -> int:
        """Count the storages of ``tensors`` as of this part from now on, and return their bytes."""
        found = 0
        for storage in {id(s): s for t in tensors for s in storages(t)}.values():
            known = self._seen.get(storage)
            if known is None:
                known = self._count(storage, part)
            self.held[known[1]] -= known[0]
            self.held[part] += known[0]
            known[1] = part
            found += known[0]
        return found

    def add(self, part: str, size: int) -> None:
        """Count so many bytes more, or fewer, as of this part."""
        self.held[part] += size
        self._now += size
        if self._now > self.peak:
            self.start()

    def start(self) -> None:
        """Look for the peak from here on."""
        self.peak, self.peak_held, self.peak_phase = self._now, self.held.copy(), self.phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for value in tree_iter(returned):
            if isinstance(value, Tensor) and value.device.type == self._device.type:
                for storage in storages(value):
                    if storage not in self._seen:
                        self._count(storage, STEP)
        return returned

    def _count(self, storage: Any, part: str) -> list[Any]:
        known = [storage.nbytes(), part]
        self._seen[storage] = known
        self.held[part] += known[0]
        self._now += known[0]
        if self._now > self.peak:
            self.start()
        weakref.finalize(storage, self._free, known).atexit = False
        return known

    def _free(self, known: list[Any]) -> None:
        self.held[known[1]] -= known[0]
        self._now -= known[0]


def storages(tensor: Tensor) -> list[Any]:
    """Where a tensor lies; of one that is put together of others, where those lie."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return [storage for name in names for storage in storages(getattr(tensor, name))]
    if tensor.layout is not torch.strided:
        return []
    return [tensor.untyped_storage()]
