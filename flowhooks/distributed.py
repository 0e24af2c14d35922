"""Describe this process among those of a run; it is alone when torch.distributed is not running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Describes the processes that share a batch, and which of them this one is.

    Args:
        rank: rank of this process.
        world_size: number of processes.
        all_reduce: returns the sum of a tensor over all of them, detached.
    """

    rank: int = 0
    world_size: int = 1
    all_reduce: Callable[[Tensor], Tensor] = torch.Tensor.detach


ALONE = Processes()


def running() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if running() else 0


def world_size() -> int:
    return dist.get_world_size() if running() else 1


def device() -> torch.device:
    """Return the device of tensors that processes exchange: the current GPU under NCCL, else the CPU."""
    if running() and dist.get_backend() == dist.Backend.NCCL:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum over processes, detached; the tensor itself when alone."""
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def processes() -> Processes:
    """Return the processes of this run."""
    return Processes(rank=rank(), world_size=world_size(), all_reduce=all_reduce)


@torch.no_grad()
def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Replace every gradient by its mean over processes, in one flat exchange.

    Call it once before the optimiser step: any number of forwards and backwards may have filled the gradients, which a
    wrapped module that counts its backwards (DistributedDataParallel) would not allow. A parameter without gradient
    counts as zero. Those of sharded weights are left as they are: FSDP has averaged them.
    """
    parameters = [each for each in parameters if not isinstance(each, DTensor)]
    if world_size() == 1 or not parameters:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten().float() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    start = 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        end = start + gradient.numel()
        parameter.grad = flat[start:end].view_as(gradient).to(gradient.dtype)
        start = end
