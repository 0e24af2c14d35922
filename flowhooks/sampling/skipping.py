"""Skip the network on the way of a rollout to a state: calls return zeros in the form of what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from flowhooks.probe.recorder import execution_device
from flowhooks.probe.values import map_tensors
from flowhooks.splice import splice


class SkipNetwork:
    """Replaces networks until a step: they do not run and return earlier outputs, without data."""

    def __init__(self, forms: Sequence[Sequence[Any]], until: int):
        self._forms, self._until = forms, until
        self._step = self._calls = 0

    def go_on(self) -> None:
        """Count the loop's next step."""
        self._step, self._calls = self._step + 1, 0

    @contextmanager
    def of(self, networks: Mapping[str, nn.Module]) -> Iterator[None]:
        sleep = self

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            if sleep._step == sleep._until:
                return super(type(self), self).__call__(*args, **kwargs)  # type: ignore[misc]
            form = sleep._forms[sleep._step][sleep._calls]
            sleep._calls += 1
            device = execution_device(self)
            return map_output(form, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=device))

        # On the class, not on `forward`, so that forward hooks on the network do not run.
        with ExitStack() as stack:
            for network in networks.values():
                stack.enter_context(splice(network, __call__=call))
            yield


@contextmanager
def record_output_shapes(networks: Mapping[str, nn.Module], calls: list[Any]) -> Iterator[None]:
    """Record the outputs of the networks as tensors without data."""

    def after(module: nn.Module, args: Any, output: Any) -> None:
        calls.append(map_output(output, shape_of))

    with ExitStack() as stack:
        for network in networks.values():
            stack.callback(network.register_forward_hook(after).remove)
        yield


def shape_of(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape and dtype that holds nothing, on the meta device."""
    return torch.empty((), dtype=tensor.dtype, device="meta").expand(tensor.shape)


def map_output(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a network's output with every tensor changed."""
    if isinstance(output, BaseOutput):
        return type(output)(**{name: map_output(value, change) for name, value in output.items()})
    return map_tensors(output, change)


def resized(form: Any, size: int, wanted: int) -> Any:
    """Return an output form for another number of samples: on the batch axis of tensors, or as many in a list."""
    if isinstance(form, list) and len(form) % size == 0:
        return form[: len(form) // size * wanted]
    if isinstance(form, (tuple, list)):
        return type(form)(resized(part, size, wanted) for part in form)
    if isinstance(form, BaseOutput):
        return type(form)(**{name: resized(part, size, wanted) for name, part in form.items()})
    if isinstance(form, Tensor) and form.dim() and len(form) % size == 0:
        return form[:1].expand(len(form) // size * wanted, *form.shape[1:])
    return form
