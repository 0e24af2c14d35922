"""Run a pipeline's text encoders once for calls of the pipeline that differ in their steps only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import update_wrapper
from typing import Any

import torch

from flowhooks.probe.values import map_tensors
from flowhooks.splice import restore_attributes

_PLAIN = (str, int, float, type(None))
#: Arguments of a call that come after its text.
_LATER = ("num_inference_steps", "output_type", "generator")
_NAME = "encode_prompt"


class KeptTexts:
    """Stands for a pipeline's ``encode_prompt``, and returns what it returned in an earlier call of the pipeline with
    the same arguments."""

    def __init__(self, encode: Callable[..., Any]):
        update_wrapper(self, encode)
        self.encode = encode
        self._known: dict[Any, Any] = {}
        #: Keeps what is named by its place in memory.
        self._held: list[Any] = []
        self._call: Any = None
        self._count = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = [*enumerate(args), *kwargs.items()]
        if self._call is None or any(isinstance(value, torch.Generator) for _, value in given):
            return self.encode(*args, **kwargs)
        self._count += 1
        plain = [(name, value) for name, value in given if _is_plain(value)]
        key = repr((self._call, self._count, plain))
        if key not in self._known:
            self._known[key] = self.encode(*args, **kwargs)
        known = self._known[key]
        # A pipeline may change what it gets in place.
        return map_tensors(known, torch.Tensor.clone) if type(known) in (tuple, list, torch.Tensor) else known

    @contextmanager
    def during(self, call: Mapping[str, Any]) -> Iterator[None]:
        """Let texts inside the block belong to a call of the pipeline with these arguments."""
        self._held.append(call)
        before = {name: value for name, value in sorted(call.items()) if name not in _LATER}
        self._call = {name: value if _is_plain(value) else id(value) for name, value in before.items()}
        self._count = 0
        try:
            yield
        finally:
            self._call = None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


@contextmanager
def texts_kept(pipe: Any) -> Iterator[None]:
    """Inside the block, encode the texts of equal calls of the pipeline once."""
    encode = getattr(pipe, _NAME, None)
    if encode is None:
        yield
        return
    own = vars(pipe).get(_NAME)
    setattr(pipe, _NAME, KeptTexts(encode))
    try:
        yield
    finally:
        _put(pipe, own)


@contextmanager
def texts_encoded_anew(pipe: Any) -> Iterator[None]:
    """Run the text encoders inside the block although the texts are known, so that encoders that draw random numbers
    are noticed."""
    kept = vars(pipe).get(_NAME)
    if not isinstance(kept, KeptTexts):
        yield
        return
    setattr(pipe, _NAME, kept.encode)
    try:
        yield
    finally:
        _put(pipe, kept)


def known_texts(pipe: Any, call: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Let texts inside the block be those of a call of the pipeline with these arguments, where they are kept."""
    kept = vars(pipe).get(_NAME)
    return kept.during(call) if isinstance(kept, KeptTexts) else nullcontext()


def _put(pipe: Any, own: Any) -> None:
    vars(pipe).pop(_NAME, None)
    if own is not None:
        setattr(pipe, _NAME, own)


@contextmanager
def encoded_once(pipe: Any) -> Iterator[None]:
    """Run the text encoders on the first call only; later calls in the block get the same embeddings. Some pipelines
    call once for each of their text encoders, which a plain argument names."""
    first: dict[str, Any] = {}
    encode = getattr(pipe, _NAME, None)
    if encode is None or isinstance(encode, KeptTexts):
        yield
        return

    def encode_prompt(*args: Any, **kwargs: Any) -> Any:
        plain = [
            [value for value in args if isinstance(value, _PLAIN)],
            {name: value for name, value in kwargs.items() if isinstance(value, _PLAIN)},
        ]
        if (key := repr(plain)) not in first:
            first[key] = encode(*args, **kwargs)
        return first[key]

    with restore_attributes(pipe):
        pipe.encode_prompt = encode_prompt
        yield
