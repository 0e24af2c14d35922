"""Multiply tokens by, or add to them, the row of a table that each of them picks.

Autograd keeps the table and the index: the picked rows are as large as the tokens, and are picked again in backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from flowhooks.autocast import without_autocast


def times_picked(tokens: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Compute ``tokens * rows[index]``, with arguments as in :func:`plus_picked`."""
    return _Times.apply(rows, index, tokens)


def plus_picked(tokens: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Compute ``tokens + rows[index]``.

    Args:
        tokens: ``[B, N, ...]``.
        rows: ``[B K, ...]``, rows of a sample one after the other; axes are those of tokens after the first two.
        index: ``[B, N]`` into rows; a token picks rows of its own sample only.
    """
    if torch.is_grad_enabled() and rows.requires_grad:
        return _Plus.apply(rows, index, tokens)
    # Of this sum autograd keeps nothing by itself.
    return _sum(rows, index, tokens)


class _Times(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
        of_rows, _, of_tokens = ctx.needs_input_grad
        ctx.count = len(rows)
        ctx.save_for_backward(index, rows if of_tokens else None, tokens if of_rows else None)
        return _product(rows, index, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        index, rows, tokens = ctx.saved_tensors
        of_rows = None if tokens is None else _gathered(gradient * tokens, index, ctx.count)
        multiplied = _Times.apply if torch.is_grad_enabled() else _product
        return of_rows, None, None if rows is None else multiplied(rows, index, gradient)


class _Plus(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
        ctx.count = len(rows)
        ctx.save_for_backward(index)
        return _sum(rows, index, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        (index,) = ctx.saved_tensors
        of_rows, _, of_tokens = ctx.needs_input_grad
        return _gathered(gradient, index, ctx.count) if of_rows else None, None, gradient if of_tokens else None


def _product(rows: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
    picked = _picked(rows, index)
    return picked.mul_(tokens) if _holds(picked, tokens) else picked * tokens


def _sum(rows: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
    picked = _picked(rows, index)
    return picked.add_(tokens) if _holds(picked, tokens) else picked + tokens


def _picked(rows: Tensor, index: Tensor) -> Tensor:
    """Return the picked rows ``[B, N, ...]`` in a new tensor."""
    return rows.index_select(0, index.flatten()).view(*index.shape, *rows.shape[1:])


def _holds(picked: Tensor, tokens: Tensor) -> bool:
    """Return whether the result fits into the tensor of picked rows, so that no second one of its size is needed."""
    return picked.dtype == tokens.dtype or torch.promote_types(picked.dtype, tokens.dtype) == picked.dtype


def _gathered(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Return the sum ``[B K, ...]`` over the tokens ``[B, N, ...]`` that picked a row."""
    number = torch.arange(count, device=index.device).view(len(index), -1, 1)
    chosen = (index.unsqueeze(1) == number).to(values.dtype)
    with without_autocast(values):
        return torch.bmm(chosen, values.flatten(2)).view(count, *values.shape[2:])
