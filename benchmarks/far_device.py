"""A device that is computed on the CPU, and that tells what a GPU would have cost: waits, and copies to it.

``far`` is a device to torch, as ``cuda`` is: a tensor is on it or on the host, the two do not mix, and to read a number
of it is a copy. So what a step would make a GPU wait for is counted on a machine that has none. The process that
imports this module has the device for good.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "far"
_HOST = torch.device("cpu")
#: Operations whose result's shape or value the host must know.
WAITING = frozenset(
    {
        "_local_scalar_dense",
        "_unique",
        "_unique2",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "unique_consecutive",
        "unique_dim",
    }
)
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})


@dataclass
class Traffic:
    """What passed between host and device.

    Args:
        waits: what the host waited for -> how often. A copy to the device is one of them, unless it is not blocking.
        copies: number of copies to the device that the host did not wait for.
        places: (what, the innermost lines of our own code) of every wait.
    """

    waits: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    places: list[str] = field(default_factory=list)

    def wait(self, what: str) -> None:
        self.waits[what] += 1
        frames = [frame for frame in traceback.extract_stack() if "/flowhooks/" in frame.filename]
        own = " < ".join(f"{f.filename.rpartition('/flowhooks/')[2]}:{f.lineno}" for f in reversed(frames[-3:]))
        self.places.append(f"{what} at {own or 'a line of a library'}")


_watching: list[Traffic] = []


@contextmanager
def watched() -> Iterator[Traffic]:
    """Count what passes inside the block."""
    traffic = Traffic()
    _watching.append(traffic)
    try:
        yield traffic
    finally:
        _watching.remove(traffic)


def _waits(what: str) -> None:
    for traffic in _watching:
        traffic.wait(what)


def _copies(non_blocking: bool) -> None:
    if not non_blocking:
        return _waits("blocking copy to the device")
    for traffic in _watching:
        traffic.copies += 1
    return None


class Far(Tensor):
    """A tensor on the device; ``held`` is on the host, and only this class may look at it."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Far:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.held!r})"

    def tolist(self) -> Any:
        _waits("tolist")
        return self.held.tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = copied = torch.nn.Parameter(copied, self.requires_grad) if _is_parameter(self) else copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _name(func)
        if name == "copy_":
            return _copy(args[1], args[0], *args[2:], **(kwargs or {}))
        if name in WAITING:
            _waits(name)
        given: list[Tensor] = []
        held = [_inner(value, given) for value in args]
        options = {key: _inner(value, given) for key, value in kwargs.items()} if kwargs else {}
        leaves = False
        if (device := options.get("device")) is not None:
            leaves = torch.device(device).type == _HOST.type
            options["device"] = _HOST
        if leaves and not options.get("non_blocking"):
            _waits("copy to the host")
        if name in _INDEXING:
            _index(args[1])
        elif any(type(each) is Tensor and each.dim() for each in given):
            shapes = [f"{tuple(each.shape)} on {each.device}" for each in given]
            raise RuntimeError(f"{func}: expected all tensors to be on one device, got {shapes}")
        returned = func(*held, **options)
        return returned if leaves else _outer(returned, {id(each.held): each for each in given if type(each) is Far})


@cache
def _name(func: Any) -> str:
    return func.overloadpacket.__name__


def _inner(value: Any, given: list[Tensor]) -> Any:
    """What is on the host in place of a value, whose tensors are added to a list."""
    if isinstance(value, Tensor):
        given.append(value)
        return value.held if isinstance(value, Far) else value
    if isinstance(value, (list, tuple)):
        return type(value)(_inner(each, given) for each in value)
    return value


def _outer(value: Any, own: dict[int, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return own.get(id(value)) if id(value) in own else Far(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_outer(each, own) for each in value)
    return value


def _index(indices: Any) -> None:
    for each in indices:
        if each is not None and each.dtype in (torch.bool, torch.uint8):
            _waits("boolean index")
        if each is not None and not isinstance(each, Far):
            _copies(non_blocking=False)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Far) else value


def _is_parameter(value: Tensor) -> bool:
    return isinstance(value, torch.nn.Parameter)


def _copy(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(source, Far) and not isinstance(to, Far) and not non_blocking:
        _waits("copy to the host")
    if isinstance(to, Far) and not isinstance(source, Far):
        _copies(non_blocking)
    _held(to).copy_(_held(source))
    return to


def _copy_from(source: Tensor, to: Tensor, non_blocking: bool = False) -> Tensor:
    return _copy(source, to, non_blocking)


def _empty(
    size: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    memory_format: Any = None,
) -> Tensor:
    return Far(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(
    size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None
) -> Tensor:
    return Far(torch.empty_strided(size, stride, dtype=dtype))


class _Generator(torch.Generator):
    """One of the device draws on the host, as nothing else can."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, device=_HOST if torch.device(device).type == NAME else device)


class _Module:
    """What torch asks of ``torch.far``. Random numbers without a generator are those of the host."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def empty_cache(self) -> None:
        pass

    def synchronize(self, device: Any = None) -> None:
        _waits("synchronize")


def _registered() -> torch.library.Library:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch.Generator = _Generator  # type: ignore[misc]
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    return library


_LIBRARY = _registered()
