"""Attention of meta tensors as a fused kernel holds it.

On the meta device torch takes the path that writes out the scores ``[B, H, N, N]``, which no run on a card does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowhooks.autocast import autocast_dtype


class _Fused(torch.autograd.Function):
    """Keeps for the backward pass what fused kernels keep: queries, keys, values, the result, and one number for each
    query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = _empty(query, value.shape[-1])
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, _, sums = ctx.saved_tensors
        torch.empty_like(sums)
        return tuple(_empty(each, each.shape[-1]) for each in (query, key, value))


def _empty(like: Tensor, width: int) -> Tensor:
    """``[B, H, N, width]``, where kernels put it: with the heads of a token side by side."""
    if like.dim() != 4:
        return like.new_empty((*like.shape[:-1], width))
    batch, heads, tokens, _ = like.shape
    return like.new_empty((batch, tokens, heads, width)).transpose(1, 2)


@contextmanager
def fused_on_meta() -> Iterator[None]:
    """Inside the block, ``scaled_dot_product_attention`` of meta tensors is counted as a fused kernel; that of others
    is computed as ever.

    A ``TorchFunctionMode`` would not do: it is off inside ``Tensor.backward``, where checkpointing computes anew.
    """
    real = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if query.is_meta:
            half = autocast_dtype(query)
            if half is not None:
                query, key, value = (each.to(half) for each in (query, key, value))
            return _Fused.apply(query, key, value)
        return real(query, key, value, *args, **kwargs)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = real
