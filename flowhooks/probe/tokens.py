"""Give a time per image token: which token each number of a sample belongs to, and how the network gets the times.

A sample has few distinct times, its levels, and an index per token. A network that takes a time per token gets
them; in others :class:`~flowhooks.probe.levels.Levels` replace the time embedding. Text gets level 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import inputs_of
from flowhooks.probe.levels import Broadcast, Levels, Mix
from flowhooks.probe.weight_names import Path
from flowhooks.transfer import picked, sent

if TYPE_CHECKING:
    from flowhooks.probe.layout import Layout
    from flowhooks.probe.model import FlowModel


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSigma:
    """Holds a sigma for each image token.

    Args:
        sigmas: ``[B, K]`` in [0, 1], the levels, two or more; text gets level 0.
        index: ``[B, N]`` whole numbers below K, in the order of the network's tokens.
    """

    sigmas: Tensor
    index: Tensor

    def __post_init__(self) -> None:
        if self.sigmas.dim() != 2 or self.index.dim() != 2 or len(self.sigmas) != len(self.index):
            raise ValueError(
                f"`sigmas` must be [B, K] and `index` [B, N], got {tuple(self.sigmas.shape)} and "
                f"{tuple(self.index.shape)}"
            )
        if self.sigmas.shape[1] < 2:
            raise ValueError("`sigmas` holds one level; leave `token_sigma` out where all tokens share a time")

    def take(self, rows: Sequence[int]) -> TokenSigma:
        """Return these samples, in this order."""
        return TokenSigma(sigmas=picked(self.sigmas, rows), index=picked(self.index, rows))

    def join(self, others: Sequence[TokenSigma]) -> TokenSigma:
        """Return the samples of this one, followed by those of the others."""
        every = [self, *others]
        return TokenSigma(
            sigmas=torch.cat([each.sigmas for each in every]), index=torch.cat([each.index for each in every])
        )

    @property
    def each(self) -> Tensor:
        """Return ``[B, N]``, the sigma of each token."""
        return self.sigmas.gather(1, self.index)


@dataclass(frozen=True, kw_only=True)
class TimeEntry:
    """Names the module whose output holds the levels: the time embedder, or a module before it. ``calls``: how often a
    forward calls it."""

    name: str
    calls: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Describes the image tokens of one resolution.

    Args:
        count: N, their number.
        of_element: ``[*sample_shape]``, the token that each number of a sample belongs to; 0 for a number that the
            network does not see, such as those of a given frame.
        entry: where the levels enter; None if the network takes a time per token.
        places: path of levels that are combined with a tensor, and its number of axes -> where the image tokens are.
        seen: which numbers of a sample reach the network, bool ``[*sample_shape]``; None for all.
    """

    count: int
    of_element: Tensor
    entry: TimeEntry | None
    places: Mapping[tuple[Path, int], str | None]
    seen: Tensor | None = None

    @property
    def native(self) -> bool:
        """Return whether the network takes a time per token."""
        return self.entry is None

    def spread(self, values: Tensor) -> Tensor:
        """Expand values ``[B, N]`` of each token to ``[B, *sample_shape]`` of each number."""
        return values[:, sent(self.of_element, values.device)]

    def place(self, meeting: Broadcast) -> str | None:
        """Return the learned place of the image tokens in a broadcast.

        Raises:
            ModelError: the broadcast did not occur when the tokens were learned.
        """
        key = meeting.path, meeting.other.dim()
        if key not in self.places:
            if meeting.count == 1:
                return None
            raise ModelError(
                f"the time embedding meets a tensor {tuple(meeting.other.shape)} in a way that did not occur when "
                f"its tokens were learned, after {' '.join(meeting.path) or 'nothing'}"
            )
        return self.places[key]


def check_token_sigma(token_sigma: TokenSigma, sigma: Tensor, r_sigma: Tensor | None, tokens: Tokens) -> None:
    """Raise ModelError when it does not fit the samples, or an interval was given too."""
    if r_sigma is not None:
        raise ModelError("`r_sigma` and `token_sigma` cannot be given together: an interval has one start")
    if token_sigma.index.shape != (len(sigma), tokens.count):
        raise ModelError(
            f"`token_sigma.index` is {tuple(token_sigma.index.shape)}; {len(sigma)} samples of {tokens.count} tokens "
            "were expected"
        )
    torch._assert_async((token_sigma.sigmas[:, 0] == sigma).all(), "`sigma` must be level 0 of `token_sigma`")


def called_with_token_times(
    model: FlowModel, layout: Layout, tokens: Tokens, arguments: Mapping[str, Any], token_sigma: TokenSigma
) -> Any:
    """Call the network with a time per token and return its output; ``arguments`` are those at level 0.

    Raises:
        ModelError: the samples are given other frames than those with which the tokens were learned.
    """
    if not _same(layout.seen, tokens.seen):
        given = "without a given frame" if layout.seen is None else "with a given frame"
        raise ModelError(
            f"a sample {given} has another number of tokens of its own than the one that times per token were learned "
            "with; give every sample a frame: no `reference_dropout`, and no `missing_reference` 'none'"
        )
    if tokens.entry is None:
        times = {time.name: time.of(token_sigma.each, layout.shift) for time in model.contract.times}
        return model.transformer(**{**arguments, **times})
    with leveled(model, layout, arguments, token_sigma, tokens.entry, tokens.place):
        return model.transformer(**arguments)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether two samples have the same numbers that the network sees."""
    return one is other or (one is not None and other is not None and torch.equal(one, other))


@contextmanager
def leveled(
    model: FlowModel,
    layout: Layout,
    arguments: Mapping[str, Any],
    token_sigma: TokenSigma,
    entry: TimeEntry,
    places: Callable[[Broadcast], str | None],
) -> Iterator[None]:
    """Let a call of the network with ``arguments`` inside the block hold levels from ``entry`` on."""
    network = model.transformer
    module = network.get_submodule(entry.name)
    size, count = token_sigma.sigmas.shape
    others = [
        inputs_of(module, network, {**arguments, **model.times(layout, sigma, sigma)}, entry.calls)
        for sigma in token_sigma.sigmas.unbind(1)[1:]
    ]
    calls = zip(*others, strict=True)
    mix = Mix(index=token_sigma.index, count=count, places=places, names=model.weight_names, behind=layout.behind)

    def joined(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        leaves, form = tree_flatten((args, kwargs))
        inputs = zip(leaves, *(tree_flatten(other)[0] for other in next(calls)), strict=True)
        return tree_unflatten([_interleaved(values, size) for values in inputs], form)

    def wrapped(module: nn.Module, args: tuple, output: Any) -> Any:
        return tree_map(lambda leaf: Levels(leaf, mix) if isinstance(leaf, Tensor) else leaf, output)

    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(joined, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(wrapped).remove)
        yield


def _interleaved(values: Sequence[Any], size: int) -> Any:
    """Interleave tensors ``[B, ...]``, one per level, to ``[B K, ...]``."""
    if not isinstance(values[0], Tensor):
        return values[0]
    rows = [value.unflatten(0, (size, -1)) for value in values]
    return torch.stack(rows, 1).flatten(0, 2)
