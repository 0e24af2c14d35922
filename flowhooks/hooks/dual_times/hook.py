"""Two noise levels in one sample: most tokens at one sigma, a random few at another (Self-Flow, arXiv 2603.06507)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.hooks.dual_times import DualTimesSpec
from flowhooks.hooks.flow_maps import expand_as_batch
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import Sigma, View, concatenate
from flowhooks.probe.tokens import TokenSigma
from flowhooks.transfer import sent

EXACT, BERNOULLI = "exact", "bernoulli"
#: Shares for images and for videos, whose tokens are more and more alike, and for sound, whose tokens are less so.
PICTURES, VIDEOS, SOUND = 0.25, 0.1, 0.5


def exact_subset(uniform: Tensor, ratio: float) -> Tensor:
    """``[B, N]`` of 0 and 1: the ``round(ratio N)`` tokens of each sample whose ``uniform`` ``[B, N]`` is smallest are
    1; one at least where the ratio is above 0."""
    count = uniform.shape[1]
    chosen = max(1, round(ratio * count)) if ratio else 0
    index = torch.zeros(uniform.shape, dtype=torch.long)
    return index.scatter_(1, uniform.argsort(1)[:, :chosen], 1)


def bernoulli_subset(uniform: Tensor, ratio: float) -> Tensor:
    """``[B, N]`` of 0 and 1: each token is 1 with probability ``ratio``."""
    return (uniform < ratio).long()


SUBSETS = {EXACT: exact_subset, BERNOULLI: bernoulli_subset}


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenTimes(Sigma):
    """A sigma for each token of a sample.

    Args:
        level: ``[B]``, that of text and of most tokens.
        tokens: the sigma of each token, as the model takes it.
        elements: ``[B, ...]``, the same for each number of the sample.
    """

    tokens: TokenSigma
    elements: Tensor

    @property
    def arguments(self) -> Mapping[str, Any]:
        return {"token_sigma": self.tokens}

    def spread(self, like: Tensor) -> Tensor:
        return self.elements.to(like.dtype)

    def join(self, others: Sequence[Any]) -> TokenTimes:
        level, elements = (
            concatenate([getattr(each, name) for each in (self, *others)]) for name in ("level", "elements")
        )
        tokens = self.tokens.join([other.tokens for other in others])
        return TokenTimes(level=level, tokens=tokens, elements=elements)


class DualTimes(DualTimesSpec, Hook):
    """Gives each token of the main view one of two sigmas, ``a`` or ``b``, sampled independently from the same density
    and never sorted; the noise is one tensor. Most tokens, and the text, get ``a``.

    Held-out data keeps one sigma per sample.

    Raises:
        ModelError: on attaching, a network that cannot take a time per token.
    """

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        model: Any = session.model
        for each in model.everywhere():
            each.tokens(torch.empty(1, *each.sample_shape, device=each.device))
        yield

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        if not step.training:
            return views
        main, model = views["main"], step.model
        if not isinstance(main.time, Sigma) or main.time.density is None:
            raise ValueError("`dual_times` samples a second sigma, and the first was not sampled from a density")
        clean = step.batch.clean
        tokens = model.tokens(clean)
        a, b = main.level, main.time.density("second sigma")
        index = sent(self._index(step, tokens.count), a.device)
        element_sigma = torch.where(tokens.spread(index) == 1, expand_as_batch(b, clean), expand_as_batch(a, clean))
        tokens = TokenSigma(sigmas=torch.stack([a, b], 1), index=index)
        return {**views, "main": replace(main, time=TokenTimes(level=a, tokens=tokens, elements=element_sigma))}

    def _index(self, step: Step, count: int) -> Tensor:
        """``[B, N]`` the level of each token."""
        ratio, draws, clean = self.mask_ratio, step.draws, step.batch.clean
        model: Any = step.model
        if ratio is None:
            still = PICTURES if model.sound is None else SOUND
            ratio = still if model.frames(clean) == 1 else VIDEOS
        uniform = torch.rand(len(clean) * draws.world_size, count, generator=draws.shared("second tokens"))
        return SUBSETS[self.selection](draws.local_rows(uniform), ratio)


def at_lower_sigma(view: View) -> View:
    """The view with all tokens at the lower, cleaner, of their two sigmas; the noise is the same."""
    assert isinstance(view.time, TokenTimes), f"view {view.name!r} has one sigma a sample"
    return replace(view, name="cleaner", time=Sigma(level=view.time.tokens.sigmas.amin(1)))
