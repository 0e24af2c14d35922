"""Find the parts of a network by watching one forward: blocks, tokens, time embedder, and the times it takes
natively."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.probe.conditioning import Condition
from flowhooks.probe.model import FlowModel
from flowhooks.probe.recorder import without_side_effects
from flowhooks.probe.runs import PROMPTS
from flowhooks.probe.values import tensors_in

#: Module name -> the input tensors of its first call, in the order in which modules were called.
Watched = Mapping[str, list[Tensor]]
#: Diffusers' name of the argument for the end of an interval, in networks that take one.
SECOND_TIME = ("timestep_r", "r_timestep")


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Holds the parts of a network that hooks attach to.

    Args:
        blocks: name of each module list whose members run one after the other -> number of members.
        time_embedder: the first module with its own weights whose input is the time only; None if there is none.
        tokens: image tokens at the probed size.
        text_tokens: number of text tokens, padding included, and whether they are in the stream before the image's,
            after them, or in a separate stream (``before``, ``after``, ``apart``).
        second_time: the network's argument for the end of an interval, if it has one.
        token_times: whether the time may be given per token.
    """

    blocks: Mapping[str, int]
    time_embedder: str | None
    tokens: int
    text_tokens: tuple[str, int]
    second_time: str | None
    token_times: bool

    def describe(self) -> dict[str, Any]:
        return {**vars(self), "blocks": dict(self.blocks), "text_tokens": list(self.text_tokens)}


@torch.no_grad()
def learn_anatomy(model: FlowModel) -> Anatomy:
    """Watch the network at the probed size, and return its anatomy."""
    network = model.transformer
    generator = torch.Generator().manual_seed(0)
    noisy, other = (torch.randn(1, *model.sample_shape, generator=generator).to(model.device) for _ in range(2))
    low, high = model.sigma_range
    early, late = (torch.tensor([low + part * (high - low)], device=model.device) for part in (0.8, 0.3))
    prompts = [model.encode_examples([prompt]) for prompt in PROMPTS]
    with without_side_effects(model.pipe, {model.component: network}):
        plain = watched(model, noisy, early, prompts[0])
        retimed = watched(model, noisy, late, prompts[0])
        resampled = watched(model, other, early, prompts[0])
        reprompted = watched(model, noisy, early, prompts[1])
        tokens, text = _tokens(network, plain, resampled, reprompted)
        return Anatomy(
            blocks=_blocks(network, plain),
            time_embedder=_time_embedder(network, plain, retimed, (resampled, reprompted)),
            tokens=tokens,
            text_tokens=text,
            second_time=next(
                (n for n in SECOND_TIME if n in inspect.signature(type(network).forward).parameters), None
            ),
            token_times=_takes_token_times(model, noisy, early, prompts[0], tokens),
        )


def watched(model: FlowModel, noisy: Tensor, sigma: Tensor, condition: Condition) -> dict[str, list[Tensor]]:
    """Return the input tensors of each module's first call in one prediction."""
    seen: dict[str, list[Tensor]] = {}
    with _watching(model.transformer, seen):
        model.predict(noisy, sigma, condition)
    return seen


@contextmanager
def _watching(network: nn.Module, seen: dict[str, list[Tensor]]) -> Iterator[None]:
    def before(name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if name not in seen:
            seen[name] = [t.detach().clone() for t in tensors_in([list(args), list(kwargs.values())])]

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name:
                hook = module.register_forward_pre_hook(partial(before, name), with_kwargs=True)
                stack.callback(hook.remove)
        yield


def _blocks(network: nn.Module, seen: Watched) -> dict[str, int]:
    return {
        name: len(module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and all(f"{name}.{i}" in seen for i in range(len(module)))
        and name.count(".") == 0
        and any(t.dim() in (3, 4) for t in seen[f"{name}.0"])
        and len(seen[f"{name}.0"]) > 1  # else a list of projections, each for a layer of the text encoder
    }


def _time_embedder(network: nn.Module, plain: Watched, retimed: Watched, others: tuple[Watched, ...]) -> str | None:
    """Return the innermost module that holds all layers that map the time: its input changes with the time, not with
    sample and prompt, and it has two layers of weights or more."""
    found = [
        name
        for name, tensors in plain.items()
        if _layers(network.get_submodule(name)) >= 2
        and differ(tensors, retimed[name])
        and not any(differ(tensors, other.get(name, [])) for other in others)
    ]
    if not found:
        return None
    name = found[0]
    while True:
        inner = [each for each in found if each.startswith(f"{name}.")]
        outermost = [each for each in inner if not any(each.startswith(f"{other}.") for other in inner)]
        if len(outermost) != 1:
            return name
        (name,) = outermost


def _layers(module: nn.Module) -> int:
    """Return the number of Linear layers inside; one that an adapter wraps counts once."""
    if hasattr(module, "base_layer") or isinstance(module, nn.Linear):
        return 1
    return sum(_layers(child) for child in module.children())


def differ(a: list[Tensor], b: list[Tensor]) -> bool:
    """Return whether two calls got different tensors."""
    return len(a) != len(b) or any(x.shape != y.shape or not torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _tokens(network: nn.Module, plain: Watched, resampled: Watched, reprompted: Watched) -> tuple[int, tuple[str, int]]:
    """Return the number of image tokens, from the first block that receives them; and the place of text, from the first
    block that receives both."""
    count = 0
    for name, tensors in plain.items():
        if not isinstance(_parent(network, name), nn.ModuleList):
            continue
        # With one sample, all axes but the last hold tokens, whichever of them is the batch axis.
        streams = [(k, t.flatten(0, 1)) for k, t in enumerate(tensors) if t.dim() == 3 and t.is_floating_point()]
        changed = {
            k: (t != resampled[name][k].flatten(0, 1)).any(1)
            for k, t in streams
            if tensors[k].shape == resampled[name][k].shape
        }
        held = next((k for k, rows in changed.items() if rows.any()), None)
        if held is None:
            continue
        picture = changed[held]
        count = count or int(picture.sum())
        prompted = {k for k, _ in streams if differ(tensors[k : k + 1], reprompted[name][k : k + 1])}
        if held in prompted and not picture.all():
            return count, ("after" if bool(picture[0]) else "before", int((~picture).sum()))
        apart = [len(t) for k, t in streams if k in prompted and k in changed and not changed[k].any()]
        if apart:
            return count, ("apart", apart[0])
    return count, ("apart", 0)


def _parent(network: nn.Module, name: str) -> nn.Module:
    return network.get_submodule(name.rpartition(".")[0])


def _takes_token_times(model: FlowModel, noisy: Tensor, sigma: Tensor, condition: Condition, tokens: int) -> bool:
    """Return whether one time per token, all equal, gives the same prediction as a single time, and different ones
    another."""
    if len(model.contract.times) != 1 or tokens == 0:
        return False
    whole = model.predict(noisy, sigma, condition)
    mixed = sigma.repeat(tokens)
    mixed[: tokens // 2] *= 0.5
    try:
        same, other = (_with_times(model, noisy, t.unsqueeze(0), condition) for t in (sigma.repeat(tokens), mixed))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return False
    return torch.allclose(same, whole, atol=1e-5) and not torch.allclose(other, whole, atol=1e-5)


def _with_times(model: FlowModel, noisy: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Return a prediction with the time argument replaced by that of ``sigma`` ``[B, N]``."""
    (time,) = model.contract.times

    def per_token(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, time.name: time.of(sigma)}

    handle = model.transformer.register_forward_pre_hook(per_token, with_kwargs=True)
    try:
        return model.predict(noisy, sigma[:, 0], condition)
    finally:
        handle.remove()
