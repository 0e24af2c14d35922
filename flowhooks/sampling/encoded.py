"""Encode a pipeline's prompts once, one by one, for all later calls of the pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.values import map_tensors, moved, tensors_in
from flowhooks.splice import restore_attributes


class EncodedPrompts:
    """Keeps the results of ``pipe.encode_prompt`` for each prompt, on the CPU.

    Raises:
        ModelError: the pipeline has no ``encode_prompt``.
    """

    def __init__(self, pipe: Any):
        if not hasattr(pipe, "encode_prompt"):
            raise ModelError(f"{type(pipe).__name__} has no `encode_prompt`, so its prompts cannot be encoded once")
        self.pipe = pipe
        self._known: dict[Any, Any] = {}

    @property
    def bytes(self) -> int:
        """Return the bytes of all embeddings."""
        return sum(t.numel() * t.element_size() for output in self._known.values() for t in tensors_in(output))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the pipeline encode nothing twice inside the block."""
        encode = self.pipe.encode_prompt
        signature = inspect.signature(encode)

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            given = dict(bound.arguments)
            given.update(given.pop("kwargs", {}))
            device = given.get("device") or self.pipe._execution_device
            count = max((len(v) for v in given.values() if _prompts(v)), default=1)
            each = [self._one(encode, {name: _single(value, i) for name, value in given.items()}) for i in range(count)]
            return moved(_joined(each), device, None)

        with restore_attributes(self.pipe):
            self.pipe.encode_prompt = encode_prompt
            yield

    def _one(self, encode: Any, given: Mapping[str, Any]) -> Any:
        # A prompt and a list of this one prompt are encoded alike.
        plain = {name: value[0] if _prompts(value) else value for name, value in given.items() if name != "device"}
        key = repr(sorted(plain.items()))
        if key not in self._known:
            with torch.no_grad():
                output = encode(**given)
            self._known[key] = map_tensors(output, lambda t: t.detach().cpu())
        return self._known[key]


def _prompts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _single(value: Any, i: int) -> Any:
    """Return the i-th prompt of a list of prompts, as a list; any other argument as it is."""
    return [value[i]] if _prompts(value) else value


def _joined(outputs: Sequence[Any]) -> Any:
    """Join outputs for one prompt each to the output for all of them."""
    first = outputs[0]
    if len(outputs) == 1:
        return first
    if isinstance(first, tuple):
        return tuple(_joined([output[i] for output in outputs]) for i in range(len(first)))
    if isinstance(first, list):
        return [item for output in outputs for item in output]
    if isinstance(first, Tensor) and len(first) == 1:
        return torch.cat(list(outputs))
    return first
