"""Reward fine-tuning as optimal control of the sampler's own ODE: co-states, regularisers and targets.

With control ``u``, the base's velocity ``b`` and a step from ``s_k`` to ``s_{k+1}``, ``D_k = s_{k+1} - s_k < 0``::

    x_{k+1} = x_k + D_k (b(x_k) - u_k)        cost = sum_k |D_k| L(u_k) - r(x_N)

A co-state ``g_k`` says how ``r(x_N)`` grows with ``x_k``. Stationarity pairs a state with the co-state *after* it:
``grad L(u_k) = g_{k+1}``. That, and all that follows from it here, is derived for the discrete sampler by us; the idea
is arXiv 2605.06583's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LEAN, FULL, LOOKAHEAD = "lean", "full", "lookahead"
#: Steps of Newton's method; it converges from above and doubles its digits.
_NEWTON = 24


def rms(values: Tensor) -> Tensor:
    """``[B]`` root of the mean square of each sample ``[B, ...]``."""
    return values.flatten(1).square().mean(1).sqrt()


def regularizer_gradient(control: Tensor, powers: Mapping[float, float]) -> Tensor:
    """``[B, ...]`` gradient of ``L(u) = n sum_p lambda_p / p * rms(u)^p`` over the n numbers of a sample, which is
    ``u sum_p lambda_p rms(u)^(p-2)``; 0 at 0. With the power 2 alone L is ``lambda / 2 |u|^2``.

    Args:
        powers: p > 1 -> lambda_p > 0. By the root *mean* square, so that lambdas carry over resolutions.
    """
    size = rms(control)
    safe = torch.where(size > 0, size, torch.ones_like(size))
    return _rows(_slope(safe, powers) / safe, control) * control


def optimal_control(costate: Tensor, powers: Mapping[float, float]) -> Tensor:
    """``[B, ...]`` the inverse of :func:`regularizer_gradient`: along ``g``, with the length ``rho`` that solves
    ``sum_p lambda_p rho^(p-1) = rms(g)``. A power p > 2 alone has no finite slope at 0: mix in the power 2.
    """
    size = rms(costate)
    safe = torch.where(size > 0, size, torch.ones_like(size))
    return _rows((_length(safe.double(), powers) / safe.double()).to(costate.dtype), costate) * costate


def _slope(length: Tensor, powers: Mapping[float, float]) -> Tensor:
    return sum((weight * length ** (p - 1) for p, weight in powers.items()), start=torch.zeros_like(length))


def _length(slope: Tensor, powers: Mapping[float, float]) -> Tensor:
    """Returns rho for its slope, by Newton's method between the logarithms of both, where the function is convex and
    its slope never below ``min p - 1``. One power is solved by the first guess."""
    found = torch.stack([(slope / weight).log() / (p - 1) for p, weight in powers.items()]).amin(0)
    if len(powers) > 1:
        for _ in range(_NEWTON):
            parts = torch.stack([weight * ((p - 1) * found).exp() for p, weight in powers.items()])
            steep = torch.stack([part * (p - 1) for part, p in zip(parts, powers, strict=True)]).sum(0) / parts.sum(0)
            found = found - (parts.sum(0) / slope).log() / steep
    return found.exp()


def lean(after: Tensor, by: float, through_base: Tensor) -> Tensor:
    """``g_k = g_{k+1} + D_k J_base^T g_{k+1}``: without what the control does to itself.

    Args:
        after: ``[B, ...]`` g_{k+1}.
        by: D_k.
        through_base: ``[B, ...]`` J_base(x_k)^T g_{k+1}.
    """
    return after + by * through_base


def full(after: Tensor, by: float, through_policy: Tensor, through_base: Tensor) -> Tensor:
    """``g_k = g_{k+1} + D_k (J_policy^T (g_{k+1} - m) + J_base^T m)`` with ``m = grad L(u_k)``: the exact gradient of
    ``r - cost`` along the trajectory of the policy.

    Args:
        through_policy: ``[B, ...]`` J_policy(x_k)^T (g_{k+1} - m).
        through_base: ``[B, ...]`` J_base(x_k)^T m.
    """
    return after + by * (through_policy + through_base)


def lookahead(gradient: Tensor, sigma_after: float, power: float) -> Tensor:
    """``g_{k+1} = (1 - s_{k+1})^power grad r``, of the reward's gradient where a straight line from ``x_k`` ends."""
    return (1 - sigma_after) ** power * gradient


def reward_scale(gradient: Tensor, base: Tensor, powers: Mapping[float, float], ratio: float) -> Tensor:
    """``[]`` the factor on rewards with which ``rms(u*)`` is ``ratio`` of ``rms(base)``.

    Args:
        gradient, base: ``[]`` root mean squares over a batch, of the reward's gradient and the base's velocity.
    """
    return _slope(ratio * base, powers) / gradient


def clipped_at(sizes: Tensor, limit: Tensor) -> Tensor:
    """``[B]`` factors that bring sizes above ``limit`` down to it; 1 for others, and for a size of 0."""
    return (limit / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(max=1)


def _rows(factors: Tensor, like: Tensor) -> Tensor:
    return factors.reshape(-1, *[1] * (like.dim() - 1))
