"""Shard frozen weights of networks over processes (FSDP2): each holds a part, and a block is whole while it computes.

Adapters are not sharded: every process holds the trained weights, and their gradients are averaged as without sharding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor


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
        network: without adapters; its weights are frozen.
        blocks: of the network; each is gathered while it computes, what is beside them while the network does.
    """
    network.requires_grad_(False)
    for module in (*blocks, network):
        name = type(module).__name__
        fully_shard(module, mesh=mesh)
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
            # As after :func:`shard`: torch keeps the rest of a network, beside its blocks, until the next step.
            part.set_reshard_after_forward(part is not network, recurse=False)
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
