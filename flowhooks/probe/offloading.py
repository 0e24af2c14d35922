"""Block offload: the frozen weights of a network's blocks live on the host, and are on the device while their block
computes.

A block that is called finds copies of its weights on the device in their place, and those of the block that was called
after it the last time are copied meanwhile, on a stream of their own. When the call ends the weights on the host are
back in their place. Autograd keeps the copies that it needs: with gradient checkpointing that is one block at a time,
from its recomputation to its gradient. So outside a block's own call nothing is exchanged, whatever ended it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from flowhooks.errors import ModelError
from flowhooks.probe.recomputing import repeated_blocks
from flowhooks.splice import splice
from flowhooks.transfer import bring

#: The attribute of a copy that holds the weight that it stands for.
_ORIGINAL = "_flowhooks_original"
#: Number of blocks from the host that are on the device at once.
AT_ONCE = 2


def original(weight: Tensor) -> Tensor:
    """Return the weight on the host that a copy on the device stands for, or the weight itself."""
    return vars(weight).get(_ORIGINAL, weight)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """Names the weights of a block.

    Args:
        places: (owner, name) of each weight; a weight that is shared has several.
    """

    places: tuple[tuple[nn.Module, str, nn.Parameter], ...]

    @property
    def weights(self) -> list[nn.Parameter]:
        return list(dict.fromkeys(weight for _, _, weight in self.places))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Copies:
    """Holds copies of a block's weights on the device.

    Args:
        wait: lets what is computed next wait for the copies.
    """

    block: _Block
    of: dict[nn.Parameter, nn.Parameter]
    wait: Callable[[], None]


def idle_settings(network: nn.Module, share: float, every: int) -> Iterator[str]:
    """Yield sentences about settings that save no memory on a network with so few blocks.

    Args:
        share, every: as :class:`BlockOffload` takes them; a share of 0 is none, and 0 of every block recomputes none.
    """
    blocks = len(list(repeated_blocks(network)))
    named = f"the {type(network).__name__} has {blocks:,} blocks"
    if 1 < every >= blocks:
        yield (
            f"`model.gradient_checkpointing` is {every:,} and {named}, so only the first one recomputes its "
            "activations; take a smaller number, or true for all of them"
        )
    away = math.ceil(share * math.ceil(blocks / max(1, every)))
    if 0 < away <= AT_ONCE and away < blocks:
        yield (
            f"{named}, and `model.offload` keeps {away:,} of them on the host; the one that computes and the next are "
            "on the device at any time, so no memory is saved: take a larger share, or a smaller number for "
            "`model.gradient_checkpointing`"
        )


class BlockOffload:
    """Keeps the weights of a network's blocks on the host.

    Args:
        network: a network, the weights of its blocks on the CPU and without adapters.
        device: on which the network computes.
        share: of the blocks, above 0 and at most 1; these are spread evenly over the network.
        every: only the first of every n blocks; a block that recomputes nothing would keep its copies until its
            gradient is there, as :func:`flowhooks.probe.recomputing.gradient_checkpointing` takes it.

    Attributes:
        weights: those that stay on the host.
        bytes: of these.
        blocks: how many blocks these are of, and how many there are.

    Raises:
        ModelError: the network has no blocks that could be counted, or weights of a kind that cannot be moved.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, share: float = 1.0, every: int = 1):
        self.network, self.device = network, device
        blocks = list(repeated_blocks(network))
        if not blocks:
            raise ModelError(
                f"{type(network).__name__} keeps its blocks in no list, so they cannot be counted; set `model.offload` "
                "to 'none'"
            )
        able = blocks[::every]
        count = math.ceil(share * len(able))
        chosen = [able[place * len(able) // count] for place in range(count)]
        self._blocks = {module: _block(module) for module in chosen}
        self.blocks = count, len(blocks)
        self.weights = list(dict.fromkeys(weight for block in self._blocks.values() for weight in block.weights))
        self.bytes = sum(leaf.nbytes for weight in self.weights for leaf in _leaves(weight))
        self._ahead: _Copies | None = None
        #: What was called last, and what was called after that the last time.
        self._last: Any = None
        self._after: dict[Any, _Block] = {}
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Bring weights when their block is called, inside the block."""
        if self._side is not None:
            for weight in self.weights:
                _pin(weight)
        offload = self

        def called(module: Any, *args: Any, **kwargs: Any) -> Any:
            # A copy of a module has this method too, and no weights here.
            block = offload._blocks.get(module)
            with nullcontext() if block is None else offload._here(block):
                return super(type(module), module).__call__(*args, **kwargs)  # type: ignore[misc]

        with ExitStack() as stack:
            stack.callback(self.drop)
            # Around the call, and not a hook: a compiled block traces its hooks.
            stack.enter_context(splice(*self._blocks, __call__=called))
            yield

    def move(self, device: torch.device) -> None:
        """Move the network, without these weights, to a device."""
        self.drop()
        with self._hidden():
            bring(self.network, device)

    def drop(self) -> None:
        """Free the copies that were made ahead."""
        if self._ahead is not None:
            self._ahead.wait()
        self._ahead = None

    @contextmanager
    def _here(self, block: _Block) -> Iterator[None]:
        """Put copies of a block's weights in their place, and begin with those of the next block."""
        # A block is followed by other ones in a backward pass, and after a pass without gradient.
        state = block, torch._C._current_graph_task_id() >= 0, torch.is_grad_enabled()
        if self._last is not None:
            self._after[self._last] = block
        self._last = state
        following = self._after.get(state)
        if self._ahead is None or self._ahead.block is not block:
            self.drop()
            self._ahead = self._copied(block)
        copies, self._ahead = self._ahead, None
        copies.wait()
        try:
            for owner, name, weight in block.places:
                copy = owner._parameters[name] = copies.of[weight]
                # What others have written on the weight since it was copied.
                for attribute, value in vars(weight).items():
                    vars(copy).setdefault(attribute, value)
            if following is block:
                # Between the end of a forward pass and the backward pass; a block alone would never leave.
                self._ahead = copies if len(self._blocks) > 1 else None
            elif following is not None:
                self._ahead = self._copied(following)
            yield
        finally:
            for owner, name, weight in block.places:
                owner._parameters[name] = weight

    def _copied(self, block: _Block) -> _Copies:
        """Start to copy the weights of a block to the device."""
        sources = {weight: _leaves(weight) for weight in block.weights}
        # Memory of the stream that computes, so that it serves again as soon as that is done with it.
        targets = {
            weight: [torch.empty_like(leaf, device=self.device) for leaf in leaves]
            for weight, leaves in sources.items()
        }

        def copy() -> None:
            for weight, leaves in sources.items():
                for target, leaf in zip(targets[weight], leaves, strict=True):
                    target.copy_(leaf, non_blocking=True)

        with torch.no_grad():
            wait = self._beside(copy)
            of = {weight: _rebuilt(weight, iter(targets[weight])) for weight in sources}
        return _Copies(block=block, of=of, wait=wait)

    def _beside(self, copy: Callable[[], None]) -> Callable[[], None]:
        """Run copies on the stream for them, and return how to wait for them."""
        if self._side is None:
            copy()
            return lambda: None
        # Their memory may still be read by what was computed before.
        self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            copy()
        done = self._side.record_event()
        return lambda: torch.cuda.current_stream(self.device).wait_event(done)

    @contextmanager
    def _hidden(self) -> Iterator[None]:
        places = [place for block in self._blocks.values() for place in block.places]
        try:
            for owner, name, _ in places:
                owner._parameters[name] = None
            yield
        finally:
            for owner, name, weight in places:
                owner._parameters[name] = weight


def _block(module: nn.Module) -> _Block:
    places = [
        (owner, name, weight)
        for owner in module.modules()
        for name, weight in owner._parameters.items()
        if weight is not None
    ]
    for _, name, weight in places:
        beside = any(isinstance(value, Tensor) or hasattr(value, "to") for value in vars(weight).values())
        if beside and not is_traceable_wrapper_subclass(weight):
            raise ModelError(
                f"{type(module).__name__} has a weight {name!r} that is a {type(weight).__name__}, which is moved with "
                "numbers beside it, and held until the backward pass; set `model.offload` to 'none', or quantise with "
                "another backend"
            )
    return _Block(places=tuple(places))


def _leaves(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that a tensor is made of: several for a quantised one."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [leaf for name in names for leaf in _leaves(getattr(tensor, name))]
    return [tensor if type(tensor) in (Tensor, nn.Parameter) else tensor.as_subclass(Tensor)]


def _pin(tensor: Tensor) -> None:
    """Bring a tensor's numbers to pinned memory: only from there can a copy run beside what is computed."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            _pin(getattr(tensor, name))
    else:
        tensor.data = tensor.data.pin_memory()


def _rebuilt(weight: nn.Parameter, leaves: Iterator[Tensor]) -> nn.Parameter:
    """Return a weight like this one, made of other plain tensors."""
    if is_traceable_wrapper_subclass(weight) or type(weight) is nn.Parameter:
        copy = nn.Parameter(_assembled(weight, leaves), requires_grad=False)
    else:
        copy = Tensor._make_subclass(type(weight), next(leaves), False)
    vars(copy)[_ORIGINAL] = weight
    return copy


def _assembled(tensor: Tensor, leaves: Iterator[Tensor]) -> Tensor:
    if not is_traceable_wrapper_subclass(tensor):
        return next(leaves)
    names, context = tensor.__tensor_flatten__()
    inner = {name: _assembled(getattr(tensor, name), leaves) for name in names}
    return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
