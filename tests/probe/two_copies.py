"""A prediction with a time per token computed without our code: each sample runs once at either level, and what a token
shows to others is taken from the copy at its own level."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from flowhooks.probe.tokens import TokenSigma

#: Layers other than attention in which tokens meet, by the end of their names: their input is merged.
MIXING = {
    "mochi": ("to_k", "to_v", "add_k_proj", "add_v_proj"),  # it calls attention sample by sample
    "sana": ("attn1", "ff"),
    "sana-video": ("attn1", "ff"),
    "nucleus-image": ("img_mlp", "img_mlp.gate"),
}


class Attention(TorchFunctionMode):
    """Changes what ``scaled_dot_product_attention`` is given or gives."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not nn.functional.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
        return self.attend(given)


class Watching(Attention):
    """With attention taken out, notes which keys differ between two samples: they are the picture's."""

    def __init__(self):
        self.pictures: list[torch.Tensor | None] = []

    def attend(self, given):
        keys = given["key"].detach().movedim(2, 1).flatten(2)
        paired = len(keys) == 2
        self.pictures.append(~torch.isclose(*keys, rtol=1e-3, atol=1e-5).all(1) if paired else None)
        query, value = given["query"], given["value"]
        return query if query.shape[-1] == value.shape[-1] else value


class Merging(Attention):
    """Each token's key and value come from the copy at its level; those of text from the first."""

    def __init__(self, pictures, index):
        self.pictures, self.index, self.calls = pictures, index, 0

    def attend(self, given):
        picture = self.pictures[self.calls % len(self.pictures)]
        self.calls += 1
        if picture is None or len(given["key"]) != 2 * len(self.index):  # of single samples, or of a prompt's parts
            return nn.functional.scaled_dot_product_attention(**given)
        level = torch.zeros(len(self.index), len(picture), dtype=torch.long)
        if picture.any():
            level[:, picture] = self.index
        for name in ("key", "value"):
            first, second = given[name].chunk(2)
            merged = torch.where((level == 1)[:, None, :, None], second, first)
            given[name] = torch.cat([merged, merged])
        return nn.functional.scaled_dot_product_attention(**given)


def merged_inputs(network: nn.Module, names: Sequence[str], index: torch.Tensor, stack: ExitStack) -> None:
    """What goes into these layers comes from the copy at a token's level; text, from the first.

    Tokens are ``[2 B, N, D]``, ``[2 B, D, H, W]`` or ``[2 B, F, H, W, D]``.
    """
    size, count = index.shape

    def merged(value):
        if not isinstance(value, torch.Tensor) or value.dim() < 3:
            return value
        first, second = value.chunk(2)
        grid = value.shape[2:] if value.dim() == 4 else value.shape[1:-1]
        level = index if grid.numel() == count else torch.zeros(size, grid.numel(), dtype=torch.long)
        shape = (size, 1, *grid) if value.dim() == 4 else (size, *grid, 1)
        both = torch.where(level.reshape(shape) == 1, second, first)
        return torch.cat([both, both])

    for name, module in network.named_modules():
        if name.endswith(tuple(f".{n}" for n in names)):
            stack.callback(module.register_forward_pre_hook(lambda m, args: tuple(merged(a) for a in args)).remove)


def merged_prediction(model, name: str, noisy: torch.Tensor, condition, told: TokenSigma) -> torch.Tensor:
    """``[B, ...]`` of samples that share their prompt, at two levels each."""
    watching = Watching()
    with torch.no_grad(), watching:
        two = torch.randn(2, *noisy.shape[1:], generator=torch.Generator().manual_seed(5))
        model.predict(two, told.sigmas[:1, 0].expand(2), condition.take([0, 0]))
    with ExitStack() as stack:
        merged_inputs(model.transformer, MIXING.get(name, ()), told.index, stack)
        stack.enter_context(Merging(watching.pictures, told.index))
        copies = model.predict(torch.cat([noisy, noisy]), told.sigmas.T.flatten(), condition.join([condition]))
    first, second = copies.chunk(2)
    return torch.where(model.tokens(noisy).spread(told.index) == 1, second, first)
