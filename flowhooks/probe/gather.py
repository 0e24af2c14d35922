"""Map the numbers of a sample to where they arrive, and learn such a mapping from the codes that were sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.transfer import sent

BASE = 64
ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Gather:
    """Computes ``out[i] = scale[i] * x[source[i]] + shift[i]`` on flattened samples; ``source[i] = -1`` marks a
    constant.

    Args:
        shape: of one output sample.
        source: ``[m]``, or None when the order is kept and nothing is added.
        scale, shift: ``[m]`` float64, or None for 1 and 0.
    """

    shape: tuple[int, ...]
    source: Tensor | None
    scale: Tensor | None
    shift: Tensor | None

    def apply(self, x: Tensor) -> Tensor:
        """Map ``[B, ...]`` to ``[B, *shape]``."""
        flat = x.flatten(1)
        if self.source is not None:
            source = sent(self.source, x.device)
            flat = flat[:, source.clamp(min=0)]
            flat = torch.where(source >= 0, flat, torch.zeros((), dtype=x.dtype, device=x.device))
        if self.scale is not None:
            flat = flat * sent(self.scale, x.device, x.dtype)
        if self.shift is not None:
            flat = flat + sent(self.shift, x.device, x.dtype)
        return flat.reshape(-1, *self.shape)

    def invert(self, out: Tensor, shape: Sequence[int]) -> Tensor:
        """Map ``[B, *self.shape]`` back to ``[B, *shape]``; only for a permutation (see :attr:`permutes`)."""
        flat = out.flatten(1)
        if self.shift is not None:
            flat = flat - sent(self.shift, out.device, out.dtype)
        if self.scale is not None:
            flat = flat / sent(self.scale, out.device, out.dtype)
        return self.unordered(flat, math.prod(shape)).reshape(-1, *shape)

    def unordered(self, flat: Tensor, n: int) -> Tensor:
        """Undo only the order of ``[B, m]``, without scale and shift; of the ``[B, n]``, those that do not arrive are
        0."""
        if self.source is None:
            return flat
        if self.whole:
            return torch.empty_like(flat).scatter_(1, sent(self.source, flat.device).expand_as(flat), flat)
        there = torch.nonzero(self.source >= 0).flatten()
        source, flat = sent(self.source[there], flat.device), flat[:, sent(there, flat.device)]
        return flat.new_zeros(len(flat), n).scatter_(1, source.expand_as(flat), flat)

    def filled(self, out: Tensor, rest: Tensor | None) -> Tensor:
        """Put ``rest`` ``[B, *shape]`` where ``out`` ``[B, *shape]`` holds nothing of the sample."""
        if self.source is None or rest is None or self.whole:
            return out
        there = sent(self.source >= 0, out.device).reshape(self.shape)
        return torch.where(there, out, sent(rest, out.device, out.dtype))

    def rest(self, out: Tensor) -> Tensor:
        """Return ``out`` ``[B, *shape]`` with 0 where it holds the sample."""
        if self.source is None:
            return torch.zeros_like(out)
        return torch.where(sent(self.source >= 0, out.device).reshape(self.shape), torch.zeros_like(out), out)

    @cached_property
    def whole(self) -> bool:
        """Return whether every number of ``out`` is one of the sample's."""
        return self.source is None or bool((self.source >= 0).all())

    def arrived(self, n: int) -> Tensor:
        """Return which of ``n`` numbers arrive somewhere, bool ``[n]``."""
        if self.source is None:
            return torch.ones(n, dtype=torch.bool)
        return torch.zeros(n, dtype=torch.bool).index_fill_(0, self.source[self.source >= 0], True)

    def permutes(self, n: int) -> bool:
        """Return whether every one of ``n`` elements arrives exactly once and nothing else does."""
        return self.source is None or torch.equal(self.source.sort().values, torch.arange(n))


def learn_gather(
    zeros: Tensor,
    ones: Tensor,
    digits: Sequence[Tensor],
    shape: tuple[int, ...],
    sent: int,
    *,
    rest: bool = False,
    lowest: int = 0,
) -> Gather:
    """Compute the mapping from what arrived for zeros, ones and each digit of the index.

    Args:
        rest: whether what is not of the sample is another for each, so that the mapping holds 0 there.
        lowest: what was added to each of these.
    """
    scale = flat(ones) - flat(zeros)
    shift = flat(zeros) - lowest * scale
    follows = scale != 0
    index = torch.zeros_like(shift)
    for k, arrived in enumerate(digits):
        index += (torch.where(follows, (flat(arrived) - shift) / scale, lowest) - lowest).round() * BASE**k
    source = torch.where(follows, index, -1).long()
    if not follows.any() or int(source.max()) >= sent or int(source[follows].min()) < 0:
        raise ModelError("what arrives is not a rearrangement of what was sent")
    plain = len(source) == sent and torch.equal(source, torch.arange(sent))
    # A pipeline that converts its prediction to x0 and back rounds twice.
    scale = torch.where((scale.abs() - 1).abs() < ROUNDING, scale.sign(), scale)
    shift = torch.where((shift.abs() < ROUNDING) | (~follows & rest), 0.0, shift)
    return Gather(
        shape=shape,
        source=None if plain else source,
        scale=None if bool((scale[follows] == 1).all()) else torch.where(follows, scale, 1.0),
        shift=None if not shift.any() else shift,
    )


def digit_count(n: int) -> int:
    return max(1, math.ceil(math.log(max(2, n), BASE) - 1e-9))


def digit(k: int, size: int) -> Tensor:
    return (torch.arange(size) // BASE**k % BASE).float()


def flat(z: Tensor) -> Tensor:
    return z.detach().cpu().double().flatten()
