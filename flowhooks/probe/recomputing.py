"""Gradient checkpointing: which blocks of a network recompute their activations in the backward pass, and where what
they keep until then lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from flowhooks.errors import ModelError
from flowhooks.probe.recorder import execution_device
from flowhooks.splice import restore_attributes


@contextmanager
def gradient_checkpointing(
    network: Any,
    wanted: bool | int,
    *,
    offload: bool = False,
    again: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[None]:
    """Recompute activations in the backward pass inside the block. Gradients stay the same to the bit.

    Args:
        network: a model of Diffusers, which says of itself whether it can.
        wanted: False for none, True for all blocks, or n for the first of every n.
        offload: keep the inputs of these blocks on the CPU until then, in pinned memory where the network is on another
            device.
        again: entered whenever a block is computed a second time.

    Raises:
        ModelError: the network cannot, or has no blocks that could be counted.
    """
    if not wanted:
        yield
        return
    places: dict[Any, int] = {block: place for place, block in enumerate(repeated_blocks(network))}
    every = int(wanted)
    if every > 1 and not places:
        raise ModelError(
            f"{type(network).__name__} keeps its blocks in no list, so they cannot be counted; set "
            "`model.gradient_checkpointing` to true"
        )

    def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Some networks give a block, and some its method. What is in no list always recomputes.
        if places.get(getattr(function, "__self__", function), 0) % every:
            return function(*args, **kwargs)
        # What runs inside has torch's own hooks on what it saves, so this one sees the inputs of the block alone.
        with _on_host(execution_device(network)) if offload else nullcontext():
            return checkpoint(
                function, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), again()), **kwargs
            )

    flagged = [module for module in network.modules() if hasattr(module, "gradient_checkpointing")]
    with restore_attributes(*flagged):
        try:
            network.enable_gradient_checkpointing(run)
        except ValueError as error:
            raise ModelError(f"{error}; set `model.gradient_checkpointing` to false") from error
        yield


def _on_host(device: torch.device) -> AbstractContextManager[Any]:
    """Keep on the host what is saved for the backward pass inside the block. Of tensors without numbers nothing is kept
    but their shapes."""
    if device.type != "meta":
        return save_on_cpu(pin_memory=device.type != "cpu")
    return saved_tensors_hooks(lambda saved: (saved.shape, saved.stride(), saved.dtype), _empty)


def _empty(form: tuple[Any, Any, torch.dtype]) -> Tensor:
    shape, strides, dtype = form
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def repeated_blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of module lists, in order, but for those inside another member."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from repeated_blocks(child)
