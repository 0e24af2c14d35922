"""The maths of flow maps: targets for the average velocity ``u``, with ``x_r = x_t - (t - r) u(x_t, t, r)``.

Everything is ``[B, ...]`` with times ``[B]`` in [0, 1]. A *field* is a function ``(x, t, r) -> velocity``; with r None
it gives the velocity at t.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def expand_as_batch(times: Tensor, like: Tensor) -> Tensor:
    """``[B]`` shaped to multiply ``like`` ``[B, ...]``."""
    return times.reshape(-1, *[1] * (like.dim() - 1)).to(like.dtype)


def rollout_target(teacher: Field, x: Tensor, t: Tensor, r: Tensor, steps: int) -> Tensor:
    """``(x_K - x_t) / (r - t)`` after K Euler steps of the teacher from t to r.

    With even steps this is the mean of the K velocities. With K = 1 it is the velocity at t whatever r is, and no flow
    map can be learned from it.
    """
    state, total = x, torch.zeros_like(x)
    for k in range(steps):
        velocity = teacher(state, t + (r - t) * (k / steps), None)
        state = state + expand_as_batch((r - t) / steps, x) * velocity
        total = total + velocity
    return total / steps


def flow_map_target(student: Field, velocity: Tensor, x: Tensor, t: Tensor, r: Tensor, h: Tensor | float) -> Tensor:
    """``v - (t - r) du/dt``, what the average velocity must be (MeanFlow identity, arXiv 2505.13447, eq. 6).

    The derivative along the path is a difference, ``D = [u(x + a v, t + a, r) - u(x - b v, t - b, r)] / (a + b)`` with
    ``a = b = h``, less where ``t + h`` would pass 1 or ``t - h`` pass r. Both ends go through the field as one batch.

    Args:
        h: half width, one number or ``[B]``.
    """
    later, earlier = (t + h).clamp(max=1), torch.maximum(t - h, r)
    states = [x + expand_as_batch(end - t, x) * velocity for end in (later, earlier)]
    ahead, behind = student(torch.cat(states), torch.cat([later, earlier]), torch.cat([r, r])).chunk(2)
    return velocity - expand_as_batch(t - r, x) * (ahead - behind) / expand_as_batch(later - earlier, x)


def shortcut_target(average: Field, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """The mean of two steps of half the length (arXiv 2410.12557, eq. 4)."""
    middle = (t + r) / 2
    first = average(x, t, middle)
    second = average(x - expand_as_batch(t - middle, x) * first, middle, r)
    return (first + second) / 2


def guided(target: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """The target of a student that learns ``u = w u_c + (1 - w) u_null``: ``w target + (1 - w) u_null``.

    Its error is w times that of ``u_c = (u - (1 - w) u_null) / w`` against the target.
    """
    return scale * target + (1 - scale) * unconditional


def sigma_weight(t: Tensor) -> Tensor:
    """``15/4 t sqrt(1 - t)``, 1 on average over uniform t."""
    return 3.75 * t * (1 - t).clamp(min=0).sqrt()


def balanced(loss: Tensor, branch: Tensor, floor: float, total: Callable[[Tensor], Tensor]) -> Tensor:
    """``[B]`` factors that bring the mean loss of each branch 1, 2, ... to that of branch 0.

    Args:
        loss: ``[B]``, detached.
        branch: ``[B]`` whole numbers 0 to 2.
        floor: smallest factor. The losses of branch 0 can be near zero (where its target is the model it starts from),
            and matching them would silence the others.
        total: sum over processes.
    """
    member = torch.stack([(branch == k).to(loss.dtype) for k in range(3)])
    sums, counts = total((member * loss).sum(1)), total(member.sum(1))
    means = sums / counts.clamp(min=1)
    factors = (means[0] / means.clamp(min=torch.finfo(loss.dtype).tiny)).clamp(min=floor, max=1 / floor)
    alone = (counts[0] == 0) | (counts == 0)
    return torch.where(alone, torch.ones_like(factors), factors)[branch]
