"""Find the image tokens in what each block returns, by following them through one forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.errors import ModelError
from flowhooks.flow_map.second_time import bound_arguments
from flowhooks.probe.model import FlowModel
from flowhooks.probe.recorder import without_side_effects

FIRST, LAST = "first", "last"
Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class TokenStream:
    """Says where the image tokens are in a block's output.

    Args:
        name: name of the block.
        order: its position in running order, from 0.
        output: which of the block's outputs holds them; 0 for a block that returns one tensor.
        at: whether they are the ``first`` or the ``last`` tokens of that output; text may be beside them.
        width: channels of a token.
        axis: axis of the tokens; 0 in a network that puts the batch after them.
        patch: latent frames, rows and columns of one token, for a block that returns the image ``[B, D, h, w]``, of
            which every place is a token; None for blocks whose tokens are the network's.
    """

    name: str
    order: int
    output: int
    at: str
    width: int
    axis: int = 1
    patch: Grid | None = None

    def of(self, returned: Any, tokens: int) -> Tensor:
        """Return the image tokens ``[B, tokens, D]`` from a block's return value. Raises ModelError when there are
        fewer."""
        held: Tensor = _listed(returned)[self.output]
        held = held.movedim(self.axis, 1) if self.patch is None else held.flatten(2).transpose(1, 2)
        if held.dim() != 3 or held.shape[1] < tokens:
            raise ModelError(f"{self.name} returned {tuple(held.shape)}, which does not hold {tokens} image tokens")
        return held[:, :tokens] if self.at == FIRST else held[:, held.shape[1] - tokens :]


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Holds the blocks of a network in running order.

    Args:
        names: names of all blocks.
        found: name -> stream, for the blocks whose image tokens are known.
        patch: latent frames, rows and columns of one token.
    """

    names: Sequence[str]
    found: Mapping[str, TokenStream]
    patch: Grid

    def pick(self, block: int | str, option: str) -> TokenStream:
        """Return a block by its number or its module's name.

        Raises:
            ModelError: there is none, or it is unknown where it holds the image.
        """
        count = len(self.names)
        if isinstance(block, str) and block not in self.names:
            shown = f"{self.names[0]} to {self.names[-1]}" if count else "none"
            raise ModelError(f"`{option}` is {block!r}, which is no block of the network; it has {shown}")
        if isinstance(block, int) and not 0 <= block < count:
            raise ModelError(f"`{option}` is {block}, but the network has {count} blocks, 0 to {count - 1}")
        name = block if isinstance(block, str) else self.names[block]
        if name not in self.found:
            raise ModelError(
                f"`{option}` names {name}, and it is unknown which of its tokens are the image's; the blocks that "
                f"can be used are {', '.join(self.found) or 'none'}"
            )
        return self.found[name]

    def grid(self, vae_shape: Sequence[int], stream: TokenStream | None = None) -> Grid:
        """Return frames, rows and columns of tokens for VAE latents ``[C, (F,) h, w]``: those of a block, or of the
        network's tokens."""
        own = None if stream is None else stream.patch
        return _over(_extent(vae_shape), own or self.patch)


@dataclass(kw_only=True)
class _Call:
    """Holds the tensors ``[1, M, D]`` that a block gets, by argument, and whatever it returns."""

    inputs: Mapping[str, Tensor]
    outputs: list[Any] = field(default_factory=list)


@torch.no_grad()
def learn_streams(model: FlowModel) -> Streams:
    """Follow the image tokens through the blocks at the probed size: first the tokens that change with the noise in the
    first block's input, then the same values from output to input."""
    model = model.at(**model.size)
    generator = torch.Generator().manual_seed(0)
    low, high = model.sigma_range
    sigma = torch.tensor([(low + high) / 2], device=model.device)
    anatomy, condition = model.anatomy, model.null_condition
    runs = []
    with without_side_effects(model.pipe, {model.component: model.transformer}):
        for _ in range(2):
            noisy = torch.randn(1, *model.sample_shape, generator=generator).to(model.device)
            with _watching(model.transformer, anatomy.blocks) as calls:
                model.predict(noisy, sigma, condition)
            runs.append(calls.seen)
    vae_shape = model.layout(**model.size).vae_shape
    found = _maps(runs[0], _extent(vae_shape)) or _follow(runs[0], runs[1], anatomy.tokens)
    return Streams(names=tuple(runs[0]), found=found, patch=_patch(_extent(vae_shape), anatomy.tokens))


def _maps(calls: Mapping[str, _Call], extent: Grid) -> dict[str, TokenStream]:
    """Return the streams of a network whose blocks return the image at one of several resolutions: the last output of a
    block that is one, ``[1, D, h, w]``; others are kept for blocks on the way back up."""
    found: dict[str, TokenStream] = {}
    for order, (name, call) in enumerate(calls.items()):
        held = next(((i, t) for i, t in enumerate(call.outputs) if isinstance(t, Tensor) and t.dim() == 4), None)
        if held is None:
            continue
        output, image = held
        side = max(1, round(extent[1] / image.shape[-2]))
        if _over(extent, (1, side, side)) == (1, *image.shape[-2:]):
            found[name] = TokenStream(
                name=name, order=order, output=output, at=FIRST, width=image.shape[1], patch=(1, side, side)
            )
    return found


def _follow(calls: Mapping[str, _Call], others: Mapping[str, _Call], tokens: int) -> dict[str, TokenStream]:
    found: dict[str, TokenStream] = {}
    picture: Tensor | None = None
    names = list(calls)
    for order, name in enumerate(names):
        call = calls[name]
        noised = others[name].inputs
        place = _changed(call.inputs, noised, tokens) if picture is None else _placed(call.inputs, picture)
        if place is None:
            continue
        argument, at = place
        before, after = (_beside(names, order, by) for by in (-1, 1))
        output = _output(call, argument, calls[after] if after else None, found.get(before) if before else None)
        if output is None:
            continue
        held = call.outputs[output]
        axis = 1 if len(held) == 1 else 0
        found[name] = TokenStream(name=name, order=order, output=output, at=at, width=held.shape[-1], axis=axis)
        picture = found[name].of(call.outputs, tokens)
    return found


def _changed(inputs: Mapping[str, Tensor], others: Mapping[str, Tensor], tokens: int) -> tuple[str, str] | None:
    """Return the argument whose first or last ``tokens`` tokens, and no others, differ between two noises."""
    for argument, tensor in inputs.items():
        if argument not in others or others[argument].shape != tensor.shape:
            continue
        rows = (tensor != others[argument]).any(-1).flatten()
        if int(rows.sum()) != tokens:
            continue
        for at, part in ((FIRST, rows[:tokens]), (LAST, rows[len(rows) - tokens :])):
            if part.all():
                return argument, at
    return None


def _placed(inputs: Mapping[str, Tensor], picture: Tensor) -> tuple[str, str] | None:
    """Return the argument that begins or ends with the image tokens as the previous block returned them."""
    tokens = picture.shape[1]
    for argument, tensor in inputs.items():
        if tensor.shape[1] >= tokens and tensor.shape[2] == picture.shape[2]:
            for at, part in ((FIRST, tensor[:, :tokens]), (LAST, tensor[:, tensor.shape[1] - tokens :])):
                if torch.equal(part, picture):
                    return argument, at
    return None


def _output(call: _Call, argument: str, after: _Call | None, before: TokenStream | None) -> int | None:
    """Return which output continues the input ``argument``: the only one of its size, else the one that the next block
    of the list gets as the same argument, else, for the last, the one of the previous block."""
    rows = call.inputs[argument].shape[1]
    held = {i: t for i, t in enumerate(map(_tokens_of, call.outputs)) if t is not None and t.shape[1] == rows}
    fitting = list(held)
    if len(fitting) > 1 and after is not None and argument in after.inputs:
        fitting = [i for i in fitting if torch.equal(held[i], after.inputs[argument])]
    elif len(fitting) > 1 and before is not None:
        fitting = [i for i in fitting if i == before.output]
    return fitting[0] if len(fitting) == 1 else None


def _beside(names: Sequence[str], order: int, by: int) -> str | None:
    """Return the block ``by`` places further, if it is in the same list."""
    if not 0 <= order + by < len(names):
        return None
    name, other = names[order], names[order + by]
    return other if other.rpartition(".")[0] == name.rpartition(".")[0] else None


class _watching(ExitStack):
    """Records the first call of every block."""

    def __init__(self, network: nn.Module, blocks: Mapping[str, int]):
        super().__init__()
        self.seen: dict[str, _Call] = {}
        for name in (f"{part}.{i}" for part, count in blocks.items() for i in range(count)):
            block = network.get_submodule(name)
            for handle in (
                block.register_forward_pre_hook(partial(self._before, name), with_kwargs=True),
                block.register_forward_hook(partial(self._after, name)),
            ):
                self.callback(handle.remove)

    def _before(self, name: str, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if name not in self.seen:
            given = bound_arguments(block, args, kwargs).items()
            inputs = {argument: _tokens_of(value) for argument, value in given}
            self.seen[name] = _Call(inputs={k: v.clone() for k, v in inputs.items() if v is not None})

    def _after(self, name: str, block: nn.Module, args: tuple, output: Any) -> None:
        if not self.seen[name].outputs:
            self.seen[name].outputs = [v.clone() if isinstance(v, Tensor) else v for v in _listed(output)]


def _tokens_of(value: Any) -> Tensor | None:
    """Return ``[1, M, D]`` from tokens of one sample, whichever of the first two axes they are on."""
    if not isinstance(value, Tensor) or value.dim() != 3 or not value.is_floating_point():
        return None
    return value if len(value) == 1 else value.transpose(0, 1) if value.shape[1] == 1 else None


def _listed(returned: Any) -> list[Any]:
    return list(returned) if isinstance(returned, (list, tuple)) else [returned]


def _extent(vae_shape: Sequence[int]) -> Grid:
    """Return frames, rows and columns of latents ``[C, (F,) h, w]``; those of sound ``[C, t]`` are one row."""
    if len(vae_shape) == 2:
        return 1, 1, vae_shape[-1]
    return (vae_shape[1] if len(vae_shape) == 4 else 1, vae_shape[-2], vae_shape[-1])


def _over(extent: Grid, patch: Grid) -> Grid:
    frames, rows, columns = (ceil(size / part) for size, part in zip(extent, patch, strict=True))
    return frames, rows, columns


def _patch(extent: Grid, tokens: int) -> Grid:
    """Return the latent cells of one token, square in the image."""
    for frames, side in product(range(1, extent[0] + 1), range(1, max(extent[1:]) + 1)):
        if prod(_over(extent, (frames, side, side))) == tokens:
            return frames, side, side
    raise ModelError(f"the image's {tokens} tokens are no grid over latents of {extent} frames, rows and columns")
