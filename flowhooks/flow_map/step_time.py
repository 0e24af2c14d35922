"""Times that remember the scheduler they come from, through whatever a pipeline computes with them.

So a network that is given a time can ask the scheduler of the pipeline that runs it where the step ends, whichever
pipeline that is, and however its scheduler was copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class FlowMapError(RuntimeError):
    """A flow map cannot be loaded, or a network or a scheduler does not know what the other has to tell it."""


class StepTime(Tensor):
    """Times of a schedule, or what a pipeline computes from one of them.

    Attributes:
        source: the scheduler.
        step: index of the step that starts at this time; None for a schedule ``[N]``.
        first: index of a schedule's first time.
    """

    source: Any
    step: int | None
    first: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            origin = next(value for value in leaves((args, kwargs)) if isinstance(value, StepTime))
            return changed(result, lambda tensor: _inherited(tensor, origin))

    def __deepcopy__(self, memo: Any) -> Any:
        return self.clone()


def _inherited(tensor: Tensor, origin: StepTime) -> Tensor:
    """Return a result of an operation on ``origin`` with what is known of it; the plain tensor where that is
    nothing."""
    if origin.step is not None:
        return marked(tensor, origin.source, origin.step)
    offset = 0
    if tensor.untyped_storage().data_ptr() == origin.untyped_storage().data_ptr():
        offset = int(tensor.storage_offset() - origin.storage_offset())
    elif tensor.shape != origin.shape:
        return tensor
    if tensor.dim() == 0:
        return marked(tensor, origin.source, origin.first + offset)
    if tensor.dim() == 1 and tensor.stride() == (1,):
        return marked(tensor, origin.source, None, origin.first + offset)
    return tensor


def marked(tensor: Tensor, source: Any, step: int | None, first: int = 0) -> Tensor:
    """Return the same numbers as times of a scheduler; tensors of other classes as they are, which remember nothing."""
    if type(tensor) is not Tensor:
        return tensor
    time = tensor.as_subclass(StepTime)
    # The one time of a schedule may be used as a time as it is.
    time.source, time.first = source, first
    time.step = first if step is None and tensor.numel() == 1 else step
    return time


def plain(value: Any) -> Any:
    """Return a value with ordinary tensors in place of times that remember."""
    if not any(isinstance(leaf, StepTime) for leaf in leaves(value)):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return changed(value, lambda t: t.as_subclass(Tensor) if isinstance(t, StepTime) else t)


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: changed(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [changed(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value
