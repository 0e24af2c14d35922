"""Components of a pipeline come to the device in turns: text encoders, VAE and network never wait there for each other.

The stage is a hook of accelerate's on every component, so a pipeline's own call, a call of one component and Diffusers'
``vae.decode`` all bring what they compute with. Whatever only looks at a call, or answers in place of a component,
brings nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from accelerate.utils import send_to_device
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from flowhooks.errors import ModelError
from flowhooks.probe.offloading import BlockOffload
from flowhooks.probe.recomputing import repeated_blocks
from flowhooks.probe.runs import find_networks
from flowhooks.sharding import shard
from flowhooks.splice import restore_attributes
from flowhooks.transfer import bring

#: All but the networks and the VAE: what turns prompts into conditions.
ENCODERS, VAE = "encoders", "vae"
#: How Diffusers names the components that are done once every prompt is encoded.
TEXT_ENCODER = "text_encoder"


class Stage:
    """Tells which components are on the device.

    A network stands alone, as do the text encoders, which come and go together. Once a network is at home, the VAE
    stands beside it while it decodes, and leaves when the network computes again.

    Args:
        pipe: a Diffusers pipeline, its components on the CPU.
        device: on which they compute.
    """

    def __init__(self, pipe: Any, device: torch.device):
        self.pipe, self.device = pipe, device
        alone = {*find_networks(pipe), VAE}
        self.parts: dict[str, dict[str, nn.Module]] = {}
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                self.parts.setdefault(name if name in alone else ENCODERS, {})[name] = part
        self.here: set[str] = set()
        #: Networks of which blocks stay on the CPU.
        self._offloads: dict[str, BlockOffload] = {}
        #: Networks whose weights are sharded over processes, and stay where they are.
        self._sharded: set[str] = set()
        self._home: str | None = None
        self._called: set[str] = set()

    def come(self, who: str) -> bool:
        """Bring a network, ``vae`` or the encoders to the device, and what may not be beside them back to the CPU
        before that. Returns whether anything came."""
        self._called.add(who)
        if self.here == {who}:
            return False
        beside = {who, self._home} if who == VAE else {who}
        leaving = self.here - beside
        for each in leaving:
            self._move(each, torch.device("cpu"))
        if leaving and self.device.type not in ("cpu", "meta"):
            torch.get_device_module(self.device).empty_cache()
        self.here -= leaving
        if who in self.here:
            return False
        self._move(who, self.device)
        self.here.add(who)
        return True

    def settle(self, network: str) -> None:
        """From now on this network is at home: it is on the device between the runs of the pipeline."""
        self._home = network
        self.rest()

    def rest(self) -> None:
        """After a run of the pipeline: the network that is at home returns."""
        if self._home is not None:
            self.come(self._home)

    def asks_encoders(self, call: Callable[[], Any]) -> bool:
        """Whether the text encoders compute anything in this call."""
        self._called.discard(ENCODERS)
        call()
        return ENCODERS in self._called

    def drop_text_encoders(self) -> None:
        """Free the weights of the text encoders, on the device and on the host. What remains tells their settings, and
        raises a ModelError when it is called."""
        for name in [name for name in self.parts.get(ENCODERS, {}) if name.startswith(TEXT_ENCODER)]:
            part = self.parts[ENCODERS].pop(name)
            _empty(part)
            part._hf_hook.dropped = name  # type: ignore[union-attr]

    @contextmanager
    def offloading(self, share: float, every: int, component: str | None) -> Iterator[None]:
        """Inside the block the weights of blocks stay on the CPU when their network comes, and are on the device while
        the block computes. No network may be on the device, or have an adapter, when the block begins.

        Args:
            share: of the blocks, 0 to 1.
            every: how many blocks of the trained network there are for one that recomputes; see
                :class:`flowhooks.probe.offloading.BlockOffload`.
            component: the trained network; None is the first.

        Raises:
            ModelError: a network has no blocks that could be counted, or weights that cannot be moved.
        """
        networks = find_networks(self.pipe) if share else {}
        trained = component or next(iter(networks), None)
        with ExitStack() as stack:
            stack.callback(self._offloads.clear)
            for name, network in networks.items():
                offload = BlockOffload(network, self.device, share=share, every=every if name == trained else 1)
                stack.enter_context(offload.open())
                stack.callback(offload.move, torch.device("cpu"))
                self._offloads[name] = offload
            yield

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard the weights of the networks over processes; their shards stay on the device from now on.

        Args:
            mesh: see :func:`flowhooks.sharding.mesh_of`.
        """
        for name, network in find_networks(self.pipe).items():
            shard(network, repeated_blocks(network), mesh)
            self._sharded.add(name)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Inside the block components come when they are called, the text encoders also when one of their layers is."""
        with ExitStack() as stack:
            for who, parts in self.parts.items():
                for part in list(parts.values()):
                    turn = _Turn(self, who)
                    stack.callback(_remove_hook, part, vars(part).get("forward"))
                    add_hook_to_module(part, turn)
                    # Some pipelines call a layer of a text encoder or VAE, and not the whole.
                    for layer in part.modules() if who in (ENCODERS, VAE) else ():
                        if layer is not part:
                            stack.callback(layer.register_forward_pre_hook(turn.before).remove)
            # Diffusers calls this at the end of every run, and whoever stops a run calls it too.
            stack.enter_context(restore_attributes(self.pipe))
            self.pipe.maybe_free_model_hooks = self.rest
            yield

    def _move(self, who: str, device: torch.device) -> None:
        for name, part in self.parts[who].items():
            if name in self._offloads:
                self._offloads[name].move(device)
            elif name not in self._sharded:
                bring(part, device)


class _Turn(ModelHook):
    """Calls a component to the device before it computes. Diffusers and the probe read ``execution_device``."""

    def __init__(self, stage: Stage, who: str):
        self.stage, self.who, self.dropped = stage, who, ""
        self.execution_device = stage.device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        # A pipeline that asks a parked component for its device has put the arguments there.
        if self._come():
            return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)
        return args, kwargs

    def before(self, layer: nn.Module, args: Any) -> None:
        self._come()

    def _come(self) -> bool:
        if self.dropped:
            raise ModelError(
                f"a prompt is to be encoded, and `{self.dropped}` was dropped from memory when all known prompts were "
                "encoded; set `model.keep_text_encoders` to true"
            )
        return self.stage.come(self.who)


def _remove_hook(module: nn.Module, forward: Any) -> None:
    remove_hook_from_module(module)
    # accelerate leaves the class's own method on the module.
    if forward is None:
        vars(module).pop("forward", None)


def _empty(module: nn.Module) -> None:
    for layer in module.modules():
        for name, weight in layer._parameters.items():
            if weight is not None:
                empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
                layer._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for name, buffer in layer._buffers.items():
            if buffer is not None:
                layer._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="meta")
