"""Weighted sums and products of low-rank changes, from their factors.

A change of a weight ``[out, in]`` is ``up @ down``. No function here forms a matrix larger than the factors it is
given, and all of them compute in the factors' dtype; float64 is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

METHODS = ("cat", "svd", "factor_average")


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The change ``up @ down`` of one layer, scale included.

    Args:
        down: ``[rank, in]``.
        up: ``[out, rank]``.
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def concatenate(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """The weighted sum, exactly; ranks add up."""
    return Factors(
        down=torch.cat([factors.down for _, factors in parts]),
        up=torch.cat([weight * factors.up for weight, factors in parts], dim=1),
    )


def hadamard(first: Factors, second: Factors) -> Factors:
    """The elementwise product of two changes, exactly; ranks multiply."""
    down = first.down[:, None] * second.down[None]
    up = first.up[:, :, None] * second.up[:, None]
    return Factors(down=down.flatten(0, 1), up=up.flatten(1))


def truncate(change: Factors, rank: int) -> Factors:
    """The best change of at most ``rank`` in the Frobenius norm (Eckart and Young): the leading singular values, each
    shared out evenly between its two factors. Of a smaller rank if ``change`` is but for rounding."""
    outer, core_up = torch.linalg.qr(change.up)
    inner, core_down = torch.linalg.qr(change.down.T)
    left, values, right = torch.linalg.svd(core_up @ core_down.T, full_matrices=False)
    smallest = values.amax() * torch.finfo(values.dtype).eps * max(core_up.shape + core_down.shape)
    rank = min(rank, int((values > smallest).sum()))
    root = values[:rank].sqrt()
    return Factors(down=root[:, None] * (right[:rank] @ inner.T), up=(outer @ left[:, :rank]) * root)


def average(parts: Sequence[tuple[float, Factors]]) -> Factors:
    """The factors averaged each by themselves, as public scripts do. It is not the average of the changes: of N
    independently trained adapters the relative error is ``sqrt((N - 1) / N)``, 0.82 of three; it is small where they
    share their ``down``. Ranks must be equal."""
    return Factors(
        down=sum((weight * factors.down for weight, factors in parts), start=torch.zeros(())),
        up=sum((weight * factors.up for weight, factors in parts), start=torch.zeros(())),
    )


def padded(change: Factors, rank: int) -> Factors:
    """The same change with ``rank`` factors. The new ones are zero in ``up`` only, so that they can be trained."""
    missing = rank - change.rank
    if missing <= 0:
        return change
    inputs = change.down.shape[1]
    noise = torch.randn(missing, inputs, generator=torch.Generator().manual_seed(0)).to(change.down) / inputs**0.5
    return Factors(
        down=torch.cat([change.down, noise]),
        up=torch.cat([change.up, change.up.new_zeros(change.up.shape[0], missing)], dim=1),
    )


def norm(change: Factors) -> float:
    """The Frobenius norm of ``up @ down``."""
    core_up, core_down = torch.linalg.qr(change.up)[1], torch.linalg.qr(change.down.T)[1]
    return float(torch.linalg.matrix_norm(core_up @ core_down.T))


def distance(found: Factors, wanted: Factors) -> float:
    """The Frobenius norm of the difference of two changes."""
    return norm(concatenate([(1.0, found), (-1.0, wanted)]))
