"""A time per image token: which token each number of a sample belongs to, and how the network is told.

A sample holds few distinct times, its levels, and an index per token. Where the network takes a time per token it gets
one; elsewhere :class:`~flowhooks.probe.levels.Levels` take the place of its time embedding. Text sees level 0.
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
from flowhooks.probe.levels import Broadcast, Levels, Mix, Path
from flowhooks.probe.runs import inputs_of

if TYPE_CHECKING:
    from flowhooks.probe.layout import Layout
    from flowhooks.probe.model import FlowModel


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSigma:
    """A sigma for each image token.

    Args:
        sigmas: ``[B, K]`` in [0, 1], the levels, two or more; text sees level 0.
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
        """These samples, in this order."""
        return TokenSigma(sigmas=self.sigmas[rows], index=self.index[rows])

    def join(self, others: Sequence[TokenSigma]) -> TokenSigma:
        """The samples of this one, then those of the others."""
        every = [self, *others]
        return TokenSigma(
            sigmas=torch.cat([each.sigmas for each in every]), index=torch.cat([each.index for each in every])
        )

    @property
    def each(self) -> Tensor:
        """``[B, N]``, the sigma of each token."""
        return self.sigmas.gather(1, self.index)


@dataclass(frozen=True, kw_only=True)
class TimeEntry:
    """The module whose output holds the levels: the time embedder, or what comes before it. ``calls``: how often a
    forward calls it."""

    name: str
    calls: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """The image tokens of one resolution.

    Args:
        count: N.
        of_element: ``[*sample_shape]``, the token that each number of a sample belongs to.
        entry: where the levels are put in; None where the network takes a time per token.
        places: where the image is, by the path of levels that meet a tensor and by its number of axes.
    """

    count: int
    of_element: Tensor
    entry: TimeEntry | None
    places: Mapping[tuple[Path, int], str | None]

    @property
    def native(self) -> bool:
        """Whether the network takes a time per token."""
        return self.entry is None

    def spread(self, values: Tensor) -> Tensor:
        """``[B, N]`` of each token -> ``[B, *sample_shape]`` of each number."""
        return values[:, self.of_element.to(values.device)]

    def place(self, meeting: Broadcast) -> str | None:
        """As it was learned.

        Raises:
            ModelError: a meeting that did not occur when it was learned.
        """
        key = meeting.path, meeting.other.dim()
        if key not in self.places:
            if meeting.count == 1:
                return None
            raise ModelError(
                f"the time's embedding meets a tensor {tuple(meeting.other.shape)} in a way that did not occur when "
                f"its tokens were learned, after {' '.join(meeting.path) or 'nothing'}"
            )
        return self.places[key]


def check_token_sigma(told: TokenSigma, sigma: Tensor, r_sigma: Tensor | None, tokens: Tokens) -> None:
    """Raises ModelError when it does not fit the samples, or an interval was given too."""
    if r_sigma is not None:
        raise ModelError("`r_sigma` and `token_sigma` cannot be given together: an interval has one start")
    if told.index.shape != (len(sigma), tokens.count):
        raise ModelError(
            f"`token_sigma.index` is {tuple(told.index.shape)}; {len(sigma)} samples of {tokens.count} tokens were "
            "expected"
        )
    torch._assert_async((told.sigmas[:, 0] == sigma).all(), "`sigma` must be level 0 of `token_sigma`")


def called_with_token_times(
    model: FlowModel, layout: Layout, tokens: Tokens, arguments: Mapping[str, Any], told: TokenSigma
) -> Any:
    """What the network returns; ``arguments`` are those at level 0."""
    if tokens.entry is None:
        times = {time.name: time.of(told.each, layout.shift) for time in model.contract.times}
        return model.transformer(**{**arguments, **times})
    with leveled(model, layout, arguments, told, tokens.entry, tokens.place):
        return model.transformer(**arguments)


@contextmanager
def leveled(
    model: FlowModel,
    layout: Layout,
    arguments: Mapping[str, Any],
    told: TokenSigma,
    entry: TimeEntry,
    places: Callable[[Broadcast], str | None],
) -> Iterator[None]:
    """In the block, a call of the network with ``arguments`` holds levels from ``entry`` on."""
    network = model.transformer
    module = network.get_submodule(entry.name)
    size, count = told.sigmas.shape
    others = [
        inputs_of(module, network, {**arguments, **model.times(layout, sigma, sigma)}, entry.calls)
        for sigma in told.sigmas.unbind(1)[1:]
    ]
    calls = zip(*others, strict=True)
    mix = Mix(index=told.index, count=count, places=places, names=model.weight_names)

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
    """Tensors ``[B, ...]``, one a level -> ``[B K, ...]``."""
    if not isinstance(values[0], Tensor):
        return values[0]
    rows = [value.unflatten(0, (size, -1)) for value in values]
    return torch.stack(rows, 1).flatten(0, 2)
