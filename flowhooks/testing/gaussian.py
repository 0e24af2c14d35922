"""Compute the analytic Gaussian flow: every quantity of the straight path in closed form, the reference of the maths
tests.

For data ``N(m, S^2)`` per dimension and ``A(s) = (1 - s)^2 S^2 + s^2``, the marginal at ``s`` is ``N((1 - s) m,
A(s))``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class GaussianFlow:
    """Describes data ``N(mean, std^2)``, independent in each dimension."""

    mean: float
    std: float

    def variance(self, sigma: Tensor) -> Tensor:
        """Return the variance ``A(s)`` of the marginal at sigma."""
        return (1 - sigma) ** 2 * self.std**2 + sigma**2

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return ``v(x, s) = (s - (1 - s) S^2) / A(s) * (x - (1 - s) m) - m``, shaped like ``x``; sigma broadcasts to
        it."""
        slope = (sigma - (1 - sigma) * self.std**2) / self.variance(sigma)
        return slope * (x - (1 - sigma) * self.mean) - self.mean

    def flow_map(self, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        """Return the point at sigma ``r`` to which the ODE carries ``x`` from sigma ``t``."""
        ratio = (self.variance(r) / self.variance(t)).sqrt()
        return (1 - r) * self.mean + ratio * (x - (1 - t) * self.mean)


class GaussianModel(nn.Module):
    """Adds a trainable linear term to the analytic velocity, as a model for the engine with base, adapter and
    reference.

    ``v = v_exact(x, s) + on * (x W + b)``; ``W`` and ``b`` start at zero, as an adapter does.

    Args:
        flow: the base.
        features: size of the last axis of x.
        dtype: of parameters and maths.
    """

    sigma_range = (0.0, 1.0)

    def __init__(self, flow: GaussianFlow, features: int, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.flow = flow
        self.weight = nn.Parameter(torch.zeros(features, features, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(features, dtype=dtype))
        self.on = True

    def predict(self, noisy: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        base = self.flow.velocity(noisy, sigma.reshape(-1, *[1] * (noisy.dim() - 1)))
        return base + noisy @ self.weight + self.bias if self.on else base

    def shift(self, sample: Tensor) -> float:
        return 1.0

    def seen(self, sample: Tensor, condition: Any) -> Tensor | None:
        """Return None: it sees every number."""

    def pack_mask(self, mask: Tensor, like: Tensor) -> Tensor:
        return mask.to(like.dtype)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before
