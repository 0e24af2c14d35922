"""Encode a pipeline's prompts once, one by one, for all later calls of the pipeline."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.probe.values import map_tensors, moved, tensors_in
from flowhooks.splice import restore_attributes

#: A call of ``encode_prompt`` with one prompt, as text -> what it returned, on the CPU.
Calls = Mapping[str, Any]
#: Most bytes of embeddings of prompts with images that stay in memory, those that were used last.
WITH_IMAGES = 512 * 2**20


class NotStorable(Exception):
    """What a pipeline's ``encode_prompt`` takes or returns is no tensors and JSON, and cannot be kept on disk."""


class PromptKeeper(Protocol):
    """Keeps encoded prompts on disk; see :class:`flowhooks.data.PromptCache`."""

    def find(
        self, prompts: Sequence[str], about: Mapping[str, Any], encode: Callable[[str], Calls]
    ) -> Callable[[str], Calls]:
        """Return a function that reads a prompt's calls, none for another prompt. What is missing is made by
        ``encode`` first.

        Args:
            about: what the calls depend on beside the prompt and the pipeline, as JSON.

        Raises:
            NotStorable: ``encode`` raises it.
            DataError: an embedding holds NaN, or the disk refuses a file.
        """
        ...


class EncodedPrompts:
    """Keeps the results of ``pipe.encode_prompt`` for each prompt: in memory, or, of prompts that are prepared, on disk
    where there is a keeper; then only those of the latest call are in memory.

    Raises:
        ModelError: the pipeline has no ``encode_prompt``.
    """

    def __init__(self, pipe: Any, keeper: PromptKeeper | None = None):
        if not hasattr(pipe, "encode_prompt"):
            raise ModelError(f"{type(pipe).__name__} has no `encode_prompt`, so its prompts cannot be encoded once")
        self.pipe = pipe
        self._keeper = keeper
        self._known: dict[str, Any] = {}
        #: Of prompts that are encoded with images, the latest last.
        self._seen: dict[str, Any] = {}
        self._readers: list[Callable[[str], Calls]] = []
        #: Calls of the prompts of the latest call of the pipeline.
        self._near: dict[str, Calls] = {}
        #: Calls of the prompt that is being encoded for the keeper, and of the one before it, whose negative prompt
        #: may be the same.
        self._recorded: dict[str, Any] | None = None
        self._before: Calls = {}

    @property
    def bytes(self) -> int:
        """Return the bytes of the embeddings in memory."""
        kept = [self._known, self._seen, *self._near.values()]
        return sum(t.numel() * t.element_size() for calls in kept for t in tensors_in(calls))

    def prepare(self, prompts: Sequence[str], about: Mapping[str, Any], ask: Callable[[str], None]) -> None:
        """Encode prompts that are not encoded yet.

        Args:
            about: what their embeddings depend on beside the prompt and the pipeline, as JSON.
            ask: calls the pipeline with one prompt, within :meth:`used`, until it has encoded all it will.
        """
        prompts = list(dict.fromkeys(prompts))
        if self._keeper is not None and prompts:
            try:
                self._readers.append(self._keeper.find(prompts, about, lambda prompt: self._record(prompt, ask)))
            except NotStorable:
                # The next run encodes them again.
                self._keeper = None
            self._near, self._before = {}, {}
        if self._keeper is None:
            for prompt in prompts:
                ask(prompt)

    @contextmanager
    def used(self, prompts: Sequence[str] = ()) -> Iterator[None]:
        """Let the pipeline encode nothing twice inside the block, in which it is called with these prompts."""
        near = self._near
        self._near = {prompt: near[prompt] if prompt in near else self._read(prompt) for prompt in prompts}
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
        pictured = any(map(_holds_image, plain.values()))
        key = repr(sorted((name, _content(value)) for name, value in plain.items()))
        held = (self._known, self._seen, self._before, *self._near.values())
        kept = next((each for each in held if key in each), None)
        if kept is not None:
            output = kept[key]
        else:
            with torch.no_grad():
                output = map_tensors(encode(**given), lambda t: t.detach().cpu())
            if self._recorded is None and not pictured:
                self._known[key] = output
        if pictured:
            self._keep_latest(key, output)
        if self._recorded is not None:
            # The address of an object is another one in the next run.
            if re.search(r" at 0x[0-9a-f]+", key):
                raise NotStorable
            self._recorded[key] = output
        return output

    def _keep_latest(self, key: str, output: Any) -> None:
        self._seen.pop(key, None)
        self._seen[key] = output
        sizes = [sum(t.numel() * t.element_size() for t in tensors_in(each)) for each in self._seen.values()]
        for oldest, size in list(zip(self._seen, sizes, strict=True))[:-1]:
            if sum(sizes) <= WITH_IMAGES:
                break
            del self._seen[oldest]
            sizes.remove(size)

    def _record(self, prompt: str, ask: Callable[[str], None]) -> Calls:
        recorded = self._recorded = {}
        try:
            ask(prompt)
        finally:
            self._recorded = None
        self._before = recorded
        return recorded

    def _read(self, prompt: str) -> Calls:
        return {key: output for read in self._readers for key, output in read(prompt).items()}


def _holds_image(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_image, value))
    return isinstance(value, Image.Image) or (isinstance(value, Tensor) and value.dim() >= 3)


def _content(value: Any) -> Any:
    """Return what tells a value apart, images and tensors by their content."""
    if type(value) in (list, tuple):
        return type(value)(_content(each) for each in value)
    if isinstance(value, Image.Image):
        return value.mode, value.size, sha256(value.tobytes()).hexdigest()
    if isinstance(value, Tensor):
        held = value.detach().cpu().flatten().contiguous()
        return str(value.dtype), tuple(value.shape), sha256(held.view(torch.uint8).numpy().tobytes()).hexdigest()
    return value


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
