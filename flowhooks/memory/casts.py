"""Mixed precision of tensors without numbers: torch casts nothing on the meta device, so the casts are made here, by
the rules of torch's autocast.

Whether casts are on, and in which precision, is asked of autocast for the CPU, under which such a step is counted:
what switches it off, or restores it where checkpointing computes anew, thus works as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from flowhooks.autocast import autocast_dtype

#: Operators whose arguments autocast brings to half precision, by their names in Python.
LOWER = frozenset(
    {
        *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "einsum", "chain_matmul", "multi_dot"),
        *("addmm", "addmv", "addr", "addbmm", "baddbmm", "vecdot", "prelu"),
        *("conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    }
)
_LOSSES = {
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
    "nll_loss",
    "kl_div",
    "binary_cross_entropy_with_logits",
}
#: Device -> operators whose arguments it brings to fp32. All others compute in what they are given.
FULL = {
    "cuda": frozenset(
        {
            *("exp", "expm1", "log", "log10", "log2", "log1p", "pow", "__pow__", "__rpow__", "reciprocal", "rsqrt"),
            *("acos", "asin", "cosh", "sinh", "tan", "erfinv", "softplus", "logsumexp", "renorm", "dist", "cdist"),
            *("layer_norm", "rms_norm", "group_norm", "cosine_similarity", "interpolate", *_LOSSES),
        }
    ),
    "cpu": frozenset({"avg_pool3d", "max_pool3d", "prod", "cross_entropy", "cdist", "view_as_complex", *_LOSSES}),
}
#: Device -> operators whose results it makes fp32.
RESULTS: Mapping[str, frozenset[str]] = {
    "cuda": frozenset({"softmax", "log_softmax", "sum", "prod", "cumsum", "cumprod", "vector_norm", "matrix_norm"}),
    "cpu": frozenset(),
}


class Casts(TorchFunctionMode):
    """Casts the arguments of operators on meta tensors as torch's autocast does on a device, inside its blocks.

    Args:
        dtype: the half precision; None casts nothing.
        device: whose rules apply, ``cuda`` or ``cpu``.
    """

    def __init__(self, dtype: torch.dtype | None, device: str = "cuda"):
        super().__init__()
        self._dtype, self._full, self._results = dtype, FULL[device], RESULTS[device]
        #: Trained weight, by its id -> its cast, which is kept as long as the block.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside the block the network computes in mixed precision."""
        if self._dtype is None:
            yield
            return
        forget = torch.clear_autocast_cache

        def forget_both() -> None:
            forget()
            self._known.clear()

        torch.clear_autocast_cache = forget_both
        try:
            with torch.autocast("cpu", dtype=self._dtype), self.again():
                yield
        finally:
            torch.clear_autocast_cache = forget

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside the block casts are made; for what checkpointing computes anew, which restores autocast itself."""
        if self._dtype is None:
            yield
            return
        try:
            with self:
                yield
        finally:
            self._known.clear()

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        other = next((each for each in types if not issubclass(each, Tensor)), None)
        if other is not None:
            # It calls operators on tensors of its own, which are then cast; it knows weights by themselves.
            with self:
                return other.__torch_function__(function, types, args, kwargs)
        if name in LOWER:
            args, kwargs = tree_map(self._lower, (args, kwargs))
        elif name in self._full and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_to_full, (args, kwargs))
        elif name in self._results and args and _is_half(args[0]) and torch.is_autocast_enabled("cpu"):
            kwargs = {**kwargs, "dtype": kwargs.get("dtype") or torch.float32}
        return function(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_meta or not value.is_floating_point():
            return value
        dtype = autocast_dtype(value)
        if dtype is None or value.dtype in (dtype, torch.float64):
            return value
        kept = value.requires_grad and value.is_leaf and value.dtype == torch.float32 and torch.is_grad_enabled()
        if not kept:
            return value.to(dtype)
        if id(value) not in self._known:
            self._known[id(value)] = value, value.to(dtype)
        return self._known[id(value)][1]


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta and value.dtype in (torch.float16, torch.bfloat16)


def _to_full(value: Any) -> Any:
    return value.float() if _is_half(value) else value
