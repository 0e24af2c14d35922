"""The maths of TwinFlow (arXiv 2512.05150): a target from the averaged weights, and the difference of two branches.

States and velocities are ``[B, ...]``, times ``[B]`` in [0, 1], ``x_s = (1 - s) x0 + s e`` and ``v = e - x0``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowhooks.hooks.flow_maps import Field, expand_as_batch


def residual(
    average: Field, student: Tensor, velocity: Tensor, x: Tensor, t: Tensor, r: Tensor, *, order: int, step: float
) -> Tensor:
    """How far the student's average velocity is from consistent with the averaged weights' (RCGM, of 2512.05150).

    From ``t`` a step of ``d = min(step, t - r)`` along ``velocity``, then ``order`` even jumps of the averaged weights
    to ``r``, of lengths ``l_i`` with velocities ``u_i``::

        [(t - r) student - d velocity - sum l_i u_i] / d

    It is 0 where the student crosses the interval like its parts. Divided by d it does not fade with the step: with
    ``order`` 1 the student less this is ``v - (t - r - d) (student - u_1) / d``, the MeanFlow identity with a one-sided
    difference. In an interval no longer than the step it is ``student - velocity``.
    """
    first = (t - r).clamp(max=step)
    state, total, start = x - expand_as_batch(first, x) * velocity, torch.zeros_like(x), t - first
    for k in range(order):
        # Not added up: rounding must not carry the last end past r.
        end = r + (t - first - r) * ((order - 1 - k) / order)
        jump = expand_as_batch(start - end, x) * average(state, start, end)
        state, total, start = state - jump, total + jump, end
    return (expand_as_batch(t - r, x) * student - total) / expand_as_batch(first, x) - velocity


def enhanced(velocity: Tensor, conditional: Tensor, unconditional: Tensor, ratio: float) -> Tensor:
    """``v + ratio (u_c - u_null)``: where the conditional prediction u_c settles is one guided by ``1 / (1 - ratio)``.

    In expectation ``u_c = v + ratio (u_c - u_null)`` there, so ``u_c = u_null + (v - u_null) / (1 - ratio)``.
    """
    return velocity + ratio * (conditional - unconditional)


def bounded(values: Tensor, bound: float | None) -> Tensor:
    """Every element in ``[-bound, bound]``; all as they are without a bound."""
    return values if bound is None else values.clamp(-bound, bound)


def branch_difference(fake: Tensor, real: Tensor, bound: float | None) -> Tensor:
    """``v_fake - v_real`` at one state (2512.05150, eq. 7), bounded.

    It is ``s / (1 - s)`` times the score of data less that of the samples. Subtracted from the velocity ``u`` that made
    a sample ``z - u``, it moves the sample to where data is likelier.
    """
    return bounded(fake - real, bound)
