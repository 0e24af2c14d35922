"""Tokens times, or plus, the row of a table that each of them picks.

Autograd keeps the table and the index: what was picked is as large as the tokens, and is picked again in backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def times_picked(tokens: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """``tokens * rows[b, index[b, n]]``, as :func:`plus_picked`."""
    return _Times.apply(rows, index, tokens)


def plus_picked(tokens: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """``tokens + rows[b, index[b, n]]``.

    Args:
        tokens: ``[B, N, ...]``.
        rows: ``[B, K, ...]``, of the axes of tokens after the first two.
        index: ``[B, N]``, whole numbers below K.
    """
    return _Plus.apply(rows, index, tokens)


class _Times(Function):
    @staticmethod
    def forward(rows: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
        picked = _picked(rows, index)
        return picked.mul_(tokens) if _holds(picked, tokens) else picked * tokens

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        rows, index, tokens = inputs
        ctx.count = rows.shape[1]
        ctx.save_for_backward(
            index, rows if ctx.needs_input_grad[2] else None, tokens if ctx.needs_input_grad[0] else None
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        index, rows, tokens = ctx.saved_tensors
        of_rows = None if tokens is None else _gathered(gradient * tokens, index, ctx.count)
        return of_rows, None, None if rows is None else times_picked(gradient, rows, index)


class _Plus(Function):
    @staticmethod
    def forward(rows: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
        picked = _picked(rows, index)
        return picked.add_(tokens) if _holds(picked, tokens) else picked + tokens

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        rows, index, _ = inputs
        ctx.count = rows.shape[1]
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (index,) = ctx.saved_tensors
        of_rows = _gathered(gradient, index, ctx.count) if ctx.needs_input_grad[0] else None
        return of_rows, None, gradient if ctx.needs_input_grad[2] else None


def _picked(rows: Tensor, index: Tensor) -> Tensor:
    """``[B, K, ...]`` -> ``[B, N, ...]``, new."""
    size, count = rows.shape[:2]
    first = torch.arange(size, device=index.device).unsqueeze(1) * count
    return rows.flatten(0, 1).index_select(0, (index + first).flatten()).unflatten(0, index.shape)


def _holds(picked: Tensor, tokens: Tensor) -> bool:
    """Whether the result can take the place of what was picked, so that no second tensor of its size is needed."""
    return torch.result_type(picked, tokens) == picked.dtype


def _gathered(values: Tensor, index: Tensor, count: int) -> Tensor:
    """The sum ``[B, K, ...]`` over the tokens ``[B, N, ...]`` that picked a row."""
    chosen = index.unsqueeze(1) == torch.arange(count, device=index.device).unsqueeze(1)
    with torch.autocast(values.device.type, enabled=False):
        return torch.bmm(chosen.to(values.dtype), values.flatten(2)).unflatten(2, values.shape[2:])
