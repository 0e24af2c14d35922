"""The counted floor of a step: its forwards, its backward passes and its optimiser on the bare network.

A step is watched once. Every call of the network is kept with its arguments, whether it had a gradient, whether the
adapter was on and after which block it ended, and the decoder's calls likewise. The floor makes the same calls on a
network with a LoRA of PEFT's alone: no hooks, no targets, no losses, no random numbers, no pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from flowhooks.flow_map.second_time import StopForward
from flowhooks.probe.values import map_tensors, tensors_in


@dataclass(kw_only=True)
class Call:
    """One call of a module.

    Args:
        kwargs, args: its arguments, detached.
        graph: whether it had a gradient.
        by_input: whether the gradient was that of its input alone.
        adapted: whether the adapter was on.
        blocks: blocks of the network that ran.
        ended: whether it was left before its end.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    graph: bool
    by_input: bool
    adapted: bool
    blocks: int = 0
    ended: bool = True

    @property
    def rows(self) -> int:
        return len(tensors_in((self.args, dict(self.kwargs)))[0])


@dataclass(kw_only=True)
class Calls:
    """What a step called.

    Args:
        network, decoder: calls, in order.
    """

    network: list[Call] = field(default_factory=list)
    decoder: list[Call] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers that do not depend on a machine."""
        return {
            "forwards": len(self.network),
            "rows": sum(call.rows for call in self.network),
            "blocks": sum(call.blocks * call.rows for call in self.network),
            "backwards": sum(call.graph for call in self.network),
            "decodes": len(self.decoder),
        }


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network, in the order in which it calls them."""
    return [block for part in network.children() if isinstance(part, nn.ModuleList) for block in part]


def layers_of(network: nn.Module) -> list[BaseTunerLayer]:
    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def watched(network: nn.Module, decoder: nn.Module | None = None) -> Iterator[Calls]:
    """Keep what is called inside the block."""
    calls, layer = Calls(), next(iter(layers_of(network)), None)

    def keep(into: list[Call]) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given = [each.requires_grad for each in tensors_in((args, kwargs))]
            into.append(
                Call(
                    args=map_tensors(args, _copied),
                    kwargs=map_tensors(kwargs, _copied),
                    graph=torch.is_grad_enabled(),
                    by_input=any(given),
                    adapted=layer is not None and not layer.disable_adapters,
                )
            )

        return before

    def block(*_: Any) -> None:
        calls.network[-1].blocks += 1

    def after(*_: Any) -> None:
        calls.network[-1].ended = False

    with ExitStack() as stack:
        stack.callback(network.register_forward_pre_hook(keep(calls.network), with_kwargs=True).remove)
        stack.callback(network.register_forward_hook(after).remove)
        for each in blocks_of(network):
            stack.callback(each.register_forward_pre_hook(block).remove)
        if decoder is not None:
            stack.callback(decoder.register_forward_pre_hook(keep(calls.decoder), with_kwargs=True).remove)
        yield calls


def _copied(value: Tensor) -> Tensor:
    return value.detach().clone()


def adapt(network: nn.Module, rank: int, targets: Sequence[str]) -> list[nn.Parameter]:
    """Put a LoRA of PEFT's on a network, and return its weights."""
    network.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)), network)
    return [p for p in network.parameters() if p.requires_grad]


class Floor:
    """Makes the calls of a step.

    Args:
        network: bare, with or without an adapter of PEFT's.
        calls: of one step.
        optimizer: of what is trained.
        decoder: that of the pipeline's VAE.
    """

    def __init__(
        self, network: nn.Module, calls: Calls, optimizer: torch.optim.Optimizer, decoder: nn.Module | None = None
    ):
        self.network, self.calls, self.optimizer, self.decoder = network, calls, optimizer, decoder
        self.layers, self.blocks = layers_of(network), blocks_of(network)

    def step(self) -> None:
        for call in self.calls.network:
            for layer in self.layers:
                layer._disable_adapters = not call.adapted
            self._make(self.network, call)
        for call in self.calls.decoder:
            assert self.decoder is not None
            self._make(self.decoder, call)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _make(self, module: nn.Module, call: Call) -> None:
        leaves: list[Tensor] = []

        def given(value: Tensor) -> Tensor:
            # The first tensor is the sample.
            if not call.by_input or leaves or not value.is_floating_point():
                return value
            leaves.append(value.detach().requires_grad_())
            return leaves[0]

        args, kwargs = map_tensors((call.args, dict(call.kwargs)), given)
        with torch.set_grad_enabled(call.graph):
            output = self._called(module, call, args, kwargs)
        if not call.graph or output is None:
            return
        (first, *_) = tensors_in(output if isinstance(output, (tuple, Tensor)) else tuple(output.values()))
        if leaves:
            torch.autograd.grad(first, leaves, torch.ones_like(first))
        else:
            first.square().mean().backward()

    def _called(self, module: nn.Module, call: Call, args: Any, kwargs: Any) -> Any:
        if not call.ended or module is not self.network:
            return module(*args, **kwargs)
        handle = self.blocks[call.blocks - 1].register_forward_hook(_stop)
        try:
            with suppress(StopForward):
                module(*args, **kwargs)
        finally:
            handle.remove()
        return None


def _stop(*_: Any) -> None:
    raise StopForward
