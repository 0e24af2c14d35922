"""The maths of distribution matching (DMD, arXiv 2311.18828 and 2405.14867), in terms of velocities.

Samples, states and velocities are ``[B, ...]``, times ``[B]`` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.hooks.flow_maps import expand_as_batch
from flowhooks.hooks.timestep_schedule.hook import shift_sigma


def jump_times(count: int, shift: float) -> Tensor:
    """``[count + 1]`` sigmas from 1 to 0 on an even grid, shifted."""
    return shift_sigma(torch.linspace(1, 0, count + 1), shift)


def noising_times(u: Tensor, shift: float, low: float = 0.02, high: float = 0.98) -> Tensor:
    """Sigmas in [low, high], shaped like ``u`` in [0, 1). Neither pure noise nor a clean sample tells teacher and
    critic apart."""
    return low + (high - low) * shift_sigma(u, shift)


def flow_map_jump(x: Tensor, velocity: Tensor, span: Tensor) -> Tensor:
    """``x_r = x_t - (t - r) u``, all ``[B, ...]``, the span ``t - r`` ``[B]``; with t for the span it is ``x_0``."""
    return x - expand_as_batch(span, x) * velocity


def renoised(sample: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """``(1 - s) x0 + s e``: ``[B, ...]`` at sigmas ``[B]``."""
    return sample + expand_as_batch(sigma, sample) * (noise - sample)


def direction(fake: Tensor, real: Tensor, sample: Tensor) -> Tensor:
    """``[B, ...]`` where the KL divergence of samples from data grows: ``(fake - real) / mean |sample - real|``.

    That is the difference of two scores in the space of clean samples, weighed per sample (arXiv 2311.18828, sec. 3.2).
    It is 0 where the teacher returns the sample itself. Any other value that is not finite stays, so that the run
    stops.
    """
    size = expand_as_batch((sample - real).abs().flatten(1).mean(1), real)
    return torch.where(size == 0, torch.zeros_like(real), (fake - real) / size)


def dmd_surrogate(sample: Tensor, direction: Tensor) -> Tensor:
    """``[B]`` ``1/2 mean |x - sg(x - g)|^2`` over elements: its gradient in ``sample`` is ``g`` over their number."""
    return 0.5 * (sample - (sample - direction).detach()).square().flatten(1).mean(1)


def critic_error(velocity: Tensor, noise: Tensor, sample: Tensor) -> Tensor:
    """``[B]`` flow matching on the policy's own samples: mean ``|v - (e - x0)|^2``."""
    return (velocity - (noise - sample)).square().flatten(1).mean(1)


def with_gradients(loss: Tensor, gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return a loss of the same value whose backward pass gives these known ``gradients``."""
    value: Tensor = _Carried.apply(loss.detach(), gradients, *parameters)
    return value


class _Carried(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *parameters: nn.Parameter) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else upstream * g for g in ctx.gradients)
