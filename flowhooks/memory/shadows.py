"""Whole numbers of tensors on the meta device, for networks that read lengths and masks off them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

_READ = torch.ops.aten._local_scalar_dense.default
_COPY = torch.ops.aten._to_copy.default
#: Tensors with more numbers than this are not followed.
_MOST = 1 << 20


class Shadows(TorchDispatchMode):
    """Follows whole numbers and flags that come to the meta device, or are made there, on the CPU, so that they can be
    read. A mask is as small there as everywhere; numbers of the network itself are not followed."""

    def __init__(self) -> None:
        super().__init__()
        self._of = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        known = all(not each.is_meta or each in self._of for each in given)
        if known and given and func is _READ:
            return func(*self._shadowed(args))
        if known and given and func is _COPY and given[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return func(*self._shadowed(args), **kwargs)
        returned = func(*args, **kwargs)
        made = _tensors(returned)
        if known and made and all(isinstance(each, Tensor) and each.is_meta and _is_small(each) for each in made):
            on_cpu = {**self._shadowed(kwargs), **({"device": torch.device("cpu")} if "device" in kwargs else {})}
            try:
                found = func(*self._shadowed(args), **on_cpu)
            except (RuntimeError, NotImplementedError):
                # The CPU lacks this operator for these numbers. Who reads the tensor gets torch's error, and the plan
                # reports the run as not counted.
                return returned
            for each, shadow in zip(made, _tensors(found), strict=True):
                self._of[each] = shadow
        return returned

    def _shadowed(self, value: Any) -> Any:
        return tree_map(lambda each: self._of[each] if isinstance(each, Tensor) and each.is_meta else each, value)


def _tensors(returned: Any) -> list[Any]:
    """Return what an operator returned, as a list."""
    if isinstance(returned, Tensor):
        return [returned]
    return list(returned) if isinstance(returned, (list, tuple)) else []


def _is_small(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.numel() <= _MOST
