"""What was learnt on a small twin, as it is for the network of full size.

Both have the same kinds of blocks, one has more of each, so what is known of a twin's block holds for those at its
place: the first, the last, or one between.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

import torch
from torch import nn

from flowhooks.errors import ModelError
from flowhooks.hooks.dual_times import DualTimesSpec
from flowhooks.hooks.feature_alignment import FeatureAlignmentSpec
from flowhooks.probe import FlowModel
from flowhooks.probe.anatomy import Anatomy
from flowhooks.probe.learn import SMALL
from flowhooks.probe.streams import Streams
from flowhooks.probe.tokens import Tokens
from flowhooks.probe.weight_names import Path

_NUMBER = re.compile(r"^(.*?)\.(\d+)(?=\.|$)")


def learn_on_twin(model: FlowModel, hooks: set[str]) -> None:
    """Learn what these hooks ask of the network's values, while its twin is in its place.

    Raises:
        ModelError: the network cannot be given times per token, or its blocks cannot be followed, with the reason.
    """
    if FeatureAlignmentSpec.type in hooks:
        model.streams  # noqa: B018
    if DualTimesSpec.type in hooks:
        for each in model.everywhere():
            if max(each.size.values()) <= max(SMALL.values()):
                each.tokens(torch.empty(1, *each.sample_shape))
            else:
                # Where tokens are does not depend on the size, and a twin's forward at a large one takes minutes.
                small = model.at(**SMALL)
                tokens = small.tokens(torch.empty(1, *small.sample_shape))
                model._tokens[each._size] = _at_size(tokens, small, each)


def carry_over(model: FlowModel, twin: nn.Module, network: nn.Module) -> None:
    """Let a model whose network was exchanged know of it what was learnt on its twin."""
    held = vars(model)
    if "anatomy" in held:
        known: Anatomy = held["anatomy"]
        held["anatomy"] = replace(known, blocks={name: _count(network, name) for name in known.blocks})
    if "streams" in held:
        held["streams"] = _streams(held["streams"], twin, network)
    counts = {name: _count(twin, name) for name, part in twin.named_modules() if isinstance(part, nn.ModuleList)}
    model._tokens = {
        size: replace(tokens, places=_Places(tokens.places, counts, network)) for size, tokens in model._tokens.items()
    }


def _count(network: nn.Module, name: str) -> int:
    return len(network.get_submodule(name))  # type: ignore[arg-type]


def _at_size(tokens: Tokens, small: FlowModel, model: FlowModel) -> Tokens:
    """The image tokens of a larger sample, in unknown order, which costs no memory."""
    cells, learnt = (prod(each.layout(**each.size).vae_shape) for each in (model, small))
    return replace(
        tokens,
        count=tokens.count * cells // learnt,
        of_element=torch.zeros(model.sample_shape, dtype=torch.long, device="meta"),
        seen=model.layout(**model.size).seen,
    )


def _streams(known: Streams, twin: nn.Module, network: nn.Module) -> Streams:
    """The streams of all blocks of the network.

    Raises:
        ModelError: the blocks of two lists take turns, so the order of more of them is unknown.
    """
    lists = [name.rpartition(".")[0] for name in known.names]
    order = list(dict.fromkeys(lists))
    if lists != sorted(lists, key=order.index):
        raise ModelError("the blocks of two lists of the network take turns, so their order at full depth is unknown")
    names = [f"{part}.{i}" for part in order for i in range(_count(network, part))]
    counts = {part: lists.count(part) for part in order}
    found = {}
    for place, name in enumerate(names):
        stream = next((known.found[each] for each in _alike(name, counts, network) if each in known.found), None)
        if stream is not None:
            width = _width(stream.width, twin.get_submodule(stream.name), network.get_submodule(name))
            found[name] = replace(stream, name=name, order=place, width=width)
    return replace(known, names=tuple(names), found=found)


def _width(width: int, small: nn.Module, block: nn.Module) -> int:
    """What most of the weights of a block have where those of its twin have this width."""
    sizes = {name: weight.shape for name, weight in block.named_parameters()}
    pairs = [
        size
        for name, weight in small.named_parameters()
        for narrow, size in zip(weight.shape, sizes.get(name, ()), strict=False)
        if narrow == width
    ]
    return Counter(pairs).most_common(1)[0][0] if pairs else width


def _alike(name: str, counts: Mapping[str, int], network: nn.Module) -> Iterator[str]:
    """The names that something inside a block of the network may have in its twin, the likeliest first.

    Args:
        counts: list of blocks -> how many the twin has.
    """
    found = _NUMBER.match(name)
    if found is None or found[1] not in counts:
        yield name
        return
    part, number, rest = found[1], int(found[2]), name[found.end() :]
    last = counts[part] - 1
    whole = _count(network, part) - 1
    wanted = [0] if number == 0 else [last] if number == whole else range(1, last) or [0]
    yield from (f"{part}.{i}{rest}" for i in dict.fromkeys((*wanted, *range(last + 1))))


class _Places(Mapping[tuple[Path, int], str | None]):
    """Where image tokens are, by the path of levels through weights of the network of full size."""

    def __init__(self, known: Mapping[tuple[Path, int], str | None], counts: Mapping[str, int], network: nn.Module):
        self._known, self._counts, self._network = known, counts, network

    def __getitem__(self, key: tuple[Path, int]) -> str | None:
        if key in self._known:
            return self._known[key]
        (first, *rest), axes = key
        for name in _alike(first, self._counts, self._network):
            if ((name, *rest), axes) in self._known:
                return self._known[(name, *rest), axes]
        raise KeyError(key)

    def __iter__(self) -> Iterator[tuple[Path, int]]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
