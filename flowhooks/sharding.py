"""Shard weights of networks over processes (FSDP2): each holds a part, and a block is whole while it computes.

A network that is trained has its gradients, its optimiser's state and copies of its weights sharded alike: FSDP
averages its gradients over processes, and each process updates its rows. Adapters are not sharded: every process holds
all of them, and their gradients are averaged as without sharding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def mesh_of(device_type: str, processes: int, copies: int = 1) -> DeviceMesh:
    """Return the mesh over which weights are sharded.

    Args:
        device_type: such as ``cuda``; the CPU is for tests.
        processes: all of the run.
        copies: how many times the weights are there in total, a divisor of ``processes``; above 1 each node may hold
            all of them (HSDP), and gathering does not leave it.
    """
    if copies == 1:
        return init_device_mesh(device_type, (processes,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (copies, processes // copies), mesh_dim_names=("replicate", "shard"))


def shard(network: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard the weights of a network over the processes of a mesh, block by block; each block is brought to the device
    for that alone.

    Every process must call the network equally often from now on.

    Args:
        network: without adapters; its weights are frozen until somebody unfreezes all of them.
        blocks: of the network; each is gathered while it computes, what is beside them while the network does.
    """
    network.requires_grad_(False)
    for module in (*blocks, network):
        name = type(module).__name__
        # Also what is beside the blocks, which torch would keep whole until the next step: weights that are exchanged
        # for others in between would stay in place.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        # Messages and files name the class that Diffusers has.
        type(module).__name__ = name


def is_sharded(network: nn.Module) -> bool:
    """Whether the weights of a network are sharded, so that all processes must call it equally often."""
    return isinstance(network, FSDPModule)


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module that may be sharded, without what sharding added to it."""
    if not isinstance(module, FSDPModule):
        return type(module)
    bases: Any = type(module).__mro__
    return next(each for each in bases if not issubclass(each, FSDPModule))


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Let a network that may be sharded be whole on every process inside the block, also between its calls and the
    gradients that are taken through it."""
    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.set_reshard_after_backward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.set_reshard_after_backward(True, recurse=False)
            part.reshard()


@contextmanager
def without_hooks(network: nn.Module) -> Iterator[None]:
    """Let ``network.forward`` be called inside the block: the hook that gathers what is beside the blocks is one of a
    call."""
    if not isinstance(network, FSDPModule):
        yield
        return
    network.unshard()
    try:
        yield
    finally:
        network.reshard()


def whole(weight: Tensor) -> Tensor:
    """Return the whole of a weight that may be sharded; every process must ask for it at the same time."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def local(value: Tensor) -> Tensor:
    """Return this process's rows of a tensor that may be sharded, in the same memory; other tensors are returned."""
    with torch.no_grad():
        return value.to_local() if isinstance(value, DTensor) else value


def any_sharded(values: Iterable[Tensor]) -> bool:
    return any(isinstance(each, DTensor) for each in values)


def rows_of(value: DTensor) -> tuple[int, int]:
    """Return the first row that this process holds of a sharded tensor, and how many there are."""
    shape, offset = compute_local_shape_and_global_offset(value.shape, value.device_mesh, value.placements)
    return (offset[0], shape[0]) if shape else (0, 1)


def is_first_copy(value: DTensor) -> bool:
    """Whether this process is of those that hold the first copy of a tensor that several groups of processes hold."""
    place: Any = value.device_mesh.get_coordinate()
    return all(at == 0 for at, each in zip(place, value.placements, strict=True) if isinstance(each, Replicate))


def with_rows(rows: Tensor, like: DTensor) -> DTensor:
    """Return a tensor that is sharded like another, of its shape.

    Args:
        rows: of this process, as :func:`rows_of` says.
    """
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def most_of_all(values: Tensor) -> Tensor:
    """Return the greatest value in each place over all processes."""
    found = values.clone()
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found


@torch.no_grad()
def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients, of which some may be sharded: 0-dim, the same on every process."""
    parts = [
        nn.utils.get_total_norm([each for each in gradients if isinstance(each, DTensor) is sharded])
        for sharded in (True, False)
        if any(isinstance(each, DTensor) is sharded for each in gradients)
    ]
    norms = [whole(each) for each in parts]
    return norms[0] if len(norms) == 1 else torch.stack(norms).square().sum().sqrt()


@torch.no_grad()
def exchange(pairs: Iterable[tuple[nn.Parameter, Tensor]]) -> None:
    """Exchange the rows of sharded weights and those of values that are sharded alike. FSDP gathers a weight from the
    memory it has, so that it is not enough to give the weight another."""
    for parameter, value in pairs:
        mine, other = local(parameter), local(value)
        kept = mine.clone()
        mine.copy_(other)
        other.copy_(kept)


@contextmanager
def whole_on_main(network: nn.Module) -> Iterator[None]:
    """Inside the block the weights of a sharded network are whole on the main process, in the host's memory, and
    elsewhere as they were. All processes enter together; the network must not be called."""
    main = not dist.is_initialized() or dist.get_rank() == 0
    held = [(layer, dict(layer._parameters)) for layer in network.modules()]
    try:
        for layer, weights in held:
            for name, weight in weights.items():
                if isinstance(weight, DTensor):
                    found = weight.detach().full_tensor()
                    if main:
                        layer._parameters[name] = nn.Parameter(found.cpu(), requires_grad=False)
        yield
    finally:
        for layer, weights in held:
            layer._parameters |= {name: each for name, each in weights.items() if isinstance(each, DTensor)}


@contextmanager
def whole_shapes(network: nn.Module) -> Iterator[None]:
    """Let weights that are sharded over processes look whole inside the block, which must not read their values: what
    makes an adapter would take the shape of this process's part."""
    held = [(layer, dict(layer._parameters)) for layer in network.modules()]
    try:
        for layer, weights in held:
            for name, weight in weights.items():
                if isinstance(weight, DTensor):
                    whole = weight.to_local().new_zeros(()).expand(weight.shape)
                    layer._parameters[name] = nn.Parameter(whole, requires_grad=False)
        yield
    finally:
        for layer, weights in held:
            layer._parameters |= {name: each for name, each in weights.items() if isinstance(each, DTensor)}
