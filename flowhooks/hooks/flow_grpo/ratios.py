"""Weigh steps of a rollout that earlier updates have trained on: ratio of densities, divergence, trust region.

A stochastic step adds noise of deviation q to a mean mu that is linear in the velocity. With ``mu_old`` that of the
velocity by which it was sampled, ``x'`` the sample it led to, and means over all elements of a sample::

    log p        = -mean (x' - mu)^2 / (2 q^2)                   without its constant
    V            =  mean (mu - mu_old)^2 / (2 q^2)               the exact divergence of the two steps
    c            =  mean (x' - mu_old) (mu - mu_old) / q^2       = log p - log p_old + V
    plain        rho = exp(log p - log p_old) = exp(c - V)
    guarded      rho = exp(q c)                                  GRPO-Guard, arXiv 2510.22319

``q c`` is the mean of ``z (mu - mu_old)`` with the noise z that was drawn: 0 on average, where ``c - V`` is ``-V``.
Computed from the difference of the velocities, both are exactly 0 where these are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowhooks.kernel.view import at_least_fp32
from flowhooks.sampling.steps import Transition

PLAIN, GUARDED = "plain", "guarded"
CLIP, DIVERGENCE = "clip", "divergence"


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedStep:
    """Holds how a step compares with the one that was sampled, each ``[B]``.

    Args:
        log_ratio: logarithm of the ratio.
        divergence: V.
    """

    log_ratio: Tensor
    divergence: Tensor

    @property
    def ratio(self) -> Tensor:
        return self.log_ratio.exp()


def compared(
    step: Transition, state: Tensor, after: Tensor, policy: Tensor, before: Tensor, ratio: str
) -> ComparedStep:
    """Return how the step of the velocity ``policy`` compares with that of ``before``.

    Args:
        state, after: ``[B, ...]`` where the step starts and where it led to.
        policy, before: ``[B, ...]`` velocities, the first with gradient.
        ratio: ``plain`` or ``guarded``.
    """
    moved = step.of_velocity * (at_least_fp32(policy) - at_least_fp32(before)).flatten(1)
    drawn = (at_least_fp32(after) - step.mean(state, before)).flatten(1)
    divergence = moved.square().mean(1) / (2 * step.deviation**2)
    cross = (drawn * moved).mean(1) / step.deviation**2
    log_ratio = step.deviation * cross if ratio == GUARDED else cross - divergence
    return ComparedStep(log_ratio=log_ratio, divergence=divergence)


def clipped_loss(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """``[B]`` ``max(-A rho, -A clip(rho, 1 - c, 1 + c))``, of ``[B]`` ratios and advantages."""
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_range, 1 + clip_range))


def beyond_clip(ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """``[B]`` whether a sample has no gradient in :func:`clipped_loss`."""
    return ((advantage > 0) & (ratio > 1 + clip_range)) | ((advantage < 0) & (ratio < 1 - clip_range))


def beyond_divergence(ratio: Tensor, advantage: Tensor, divergence: Tensor, threshold: float) -> Tensor:
    """``[B]`` whether a sample is left out by Flow-DPPO (arXiv 2606.11025): the step is as far as ``threshold`` from
    the sampled one, and the loss would take it further. What leads back always counts."""
    further = ((advantage > 0) & (ratio > 1)) | ((advantage < 0) & (ratio < 1))
    return (divergence >= threshold) & further


def gated_loss(ratio: Tensor, advantage: Tensor, divergence: Tensor, threshold: float) -> Tensor:
    """``[B]`` ``-A rho``, and 0 for samples that are :func:`beyond_divergence`."""
    out = beyond_divergence(ratio.detach(), advantage, divergence.detach(), threshold)
    return torch.where(out, torch.zeros_like(ratio), -advantage * ratio)
