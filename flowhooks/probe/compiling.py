"""Compile the repeated blocks of a network with torch.compile, and count what torch compiles.

Only the ``forward`` of a block is compiled. Hooks on the block itself, which capture features, end a forward early or
bring weights to the device, run outside as they do without compiling; so blocks of one class share their graphs.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters, get_compilation_metrics

from flowhooks.errors import FlowhooksWarning, ModelError
from flowhooks.probe.values import tensors_in

#: Settings of torch's compiler while blocks are compiled. Roles add and remove hooks on layers, so torch must look at
#: them; and one class of blocks has a graph for each role, each kind of pass, and some sizes.
_SETTINGS = {"skip_nnmodule_hook_guards": False, "recompile_limit": 256, "accumulated_recompile_limit": 4096}
#: Words in torch's reasons for compiling again -> what they mean.
_REASONS = {
    "size mismatch": "a tensor has another size",
    "stride mismatch": "a tensor lies differently in memory",
    "dtype mismatch": "a tensor has another dtype",
    "requires_grad mismatch": "a tensor needs a gradient, or no longer does",
    "hooks": "a hook was put on a layer, or taken off",
    "grad_mode": "gradients were switched on or off",
}


class Compilation:
    """Counts the graphs that torch compiles of a network's blocks, and warns where they are more than a run needs.

    Args:
        backend: a backend of torch.compile, by name.
        roles: returns how many roles the network plays; each may have graphs of its own.
    """

    def __init__(self, backend: str, roles: Callable[[], int]):
        self.backend, self.roles = backend, roles
        self.graphs = 0
        self._compile = torch._dynamo.lookup_backend(backend)
        self._breaks = Counter(counters["graph_break"])
        self._situation: tuple[Any, ...] | None = None
        self._charged, self._calls, self._warned = 0, Counter[tuple[Any, ...]](), False

    def __call__(self, graph: Any, inputs: Any, **options: Any) -> Any:
        self.graphs += 1
        return self._compile(graph, inputs, **options)

    @property
    def breaks(self) -> Counter[str]:
        """Return torch's reason for each place where a block was broken into several graphs -> how often."""
        return Counter(counters["graph_break"]) - self._breaks

    def compiled(self, block: nn.Module) -> Callable[..., Any]:
        """Return what computes the block's forward."""
        forward = block.forward
        run = torch.compile(forward, backend=self)

        @functools.wraps(forward)
        def explained(*args: Any, **kwargs: Any) -> Any:
            try:
                return run(*args, **kwargs)
            except TorchDynamoException as error:
                raise ModelError(_refusal(error, type(block).__name__, self.backend)) from error

        return explained

    def called(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Note what the network is called with; graphs that are compiled from now on are for that."""
        self._settle()
        shapes = tuple(t.shape for t in tensors_in([list(args), list(kwargs.values())]))
        self._situation = torch.is_grad_enabled(), network.training, shapes

    def _settle(self) -> None:
        if self._situation is None or self.graphs == self._charged:
            return
        self._charged = self.graphs
        self._calls[self._situation] += 1
        # One call more, in which torch may have found out that a size varies.
        if self._calls[self._situation] > self.roles() + 1 and not self._warned:
            self._warned = True
            warnings.warn(
                f"torch compiles the network's blocks again and again for inputs of the same sizes ({self.graphs} "
                f"graphs so far; the last time since {_last_reason()}), and steps wait for it; set "
                "`training.compile` to 'none' if that goes on",
                FlowhooksWarning,
                stacklevel=2,
            )


@contextmanager
def compiled_blocks(
    network: nn.Module, blocks: Mapping[str, int], *, backend: str, roles: Callable[[], int]
) -> Iterator[Compilation]:
    """Let the network's repeated blocks run compiled inside the block; on exit they are as before.

    Nothing is compiled before a block is called. Compiled code of other modules, and torch's settings, are left as they
    were.

    Args:
        blocks: name of each list of blocks -> number of blocks, as in :class:`flowhooks.probe.anatomy.Anatomy`.
        backend: a backend of torch.compile.
        roles: returns how many roles the network plays.

    Raises:
        ModelError: the network has no repeated blocks; in a call of the network, torch cannot compile one.
    """
    found = [network.get_submodule(f"{name}.{i}") for name, count in blocks.items() for i in range(count)]
    if not found:
        raise ModelError(
            f"{type(network).__name__} has no repeated blocks that could be compiled; set `training.compile` to 'none'"
        )
    compilation = Compilation(backend, roles)
    fresh = {code for code in map(_code_of, found) if not torch._dynamo.eval_frame._debug_get_cache_entry_list(code)}
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(_SETTINGS))
        stack.callback(network.register_forward_pre_hook(compilation.called, with_kwargs=True).remove)
        for block in found:
            stack.callback(_restore, block, vars(block).get("forward"))
            vars(block)["forward"] = compilation.compiled(block)
        try:
            yield compilation
        finally:
            for code in fresh:
                torch._dynamo.eval_frame.reset_code(code)


def _restore(block: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del vars(block)["forward"]
    else:
        vars(block)["forward"] = forward


def _code_of(block: nn.Module) -> Any:
    return type(block).forward.__code__


def _last_reason() -> str:
    """Return in words why torch compiled last."""
    reasons = [each.recompile_reason for each in get_compilation_metrics() if each.recompile_reason]
    if not reasons:
        return "it did not say why"
    change = next((words for part, words in _REASONS.items() if part in reasons[-1]), None)
    return f"{change} than before" if change else f"this no longer holds: {reasons[-1].splitlines()[0]}"


def _refusal(error: Exception, block: str, backend: str) -> str:
    reason = " ".join(str(error).split())[:300]
    return (
        f"torch.compile could not compile {block} with the backend {backend!r}: {type(error).__name__}: {reason}. On a "
        "CPU it needs a C++ compiler such as g++, on a GPU Triton; install it, or set `training.compile` to 'none'"
    )
