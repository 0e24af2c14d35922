"""Keep the encoded prompts of runs that sample on disk, beside the embeddings of captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
from torch import Tensor

from flowhooks.data.cache import Wanted, build_entries
from flowhooks.data.encode import FORMAT, REMEDY, TEXT_FORMAT, made_by
from flowhooks.data.store import IN_MEMORY_BYTES, Entries, is_finite
from flowhooks.errors import Problem
from flowhooks.probe.values import flatten, unflatten
from flowhooks.sampling.encoded import Calls, NotStorable

if TYPE_CHECKING:
    from flowhooks.probe import FlowModel


class PromptCache:
    """Keeps what a pipeline encodes prompts to in the cache of a run; see
    :class:`flowhooks.sampling.encoded.PromptKeeper`.

    Up to 512 MiB of all that was found stay in memory, the rest is read when it is used.

    Args:
        model: the pipeline, with its text encoders.
        cache_dir, progress, rebuild, together: see :func:`flowhooks.data.build_cache`.
    """

    def __init__(
        self,
        model: FlowModel,
        cache_dir: Path | str,
        *,
        progress: bool = True,
        rebuild: bool = False,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.model, self.cache_dir = model, cache_dir
        self.progress, self.rebuild, self.together = progress, rebuild, together
        self._left = IN_MEMORY_BYTES

    def find(
        self, prompts: Sequence[str], about: Mapping[str, Any], encode: Callable[[str], Calls]
    ) -> Callable[[str], Calls]:
        """Return a function that reads a prompt's calls of ``encode_prompt``; those that are missing are made first."""
        encoder = _PromptEncoder({**about, **self._made_by}, encode)
        wanted = Wanted(encoder, prompts)
        places = build_entries(
            [wanted],
            self.cache_dir,
            progress=self.progress,
            batch_size=1,
            rebuild=self.rebuild,
            together=self.together,
        )
        keys, entries = wanted.keys, Entries(places, self._left)
        self._left = max(0, self._left - entries.nbytes)

        def read(prompt: str) -> Calls:
            key = keys.get(prompt)
            return {} if key is None else unflatten(entries.read(encoder.kind, key))

        return read

    @cached_property
    def _made_by(self) -> dict[str, str]:
        # Kept are calls inside a pipeline, which another release of Diffusers may make with other arguments.
        return {**made_by(self.model), "diffusers": diffusers.__version__}


class _PromptEncoder:
    """Encodes prompts to the tensors of all calls of ``encode_prompt`` that a call of the pipeline makes."""

    kind = "prompts"
    title = "Encoding prompts"

    def __init__(self, given: Mapping[str, Any], record: Callable[[str], Calls]):
        self.problems: list[Problem] = []
        self._given, self._record = given, record

    def about(self, item: str) -> dict[str, Any]:
        return {"format": FORMAT, "texts": TEXT_FORMAT, "prompt": item, **self._given}

    def encode(self, items: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for item in items:
            try:
                tensors = flatten(self._record(item))
            except TypeError as error:
                raise NotStorable from error
            if all(map(is_finite, tensors.values())):
                yield item, tensors
            else:
                what = f"the text encoders turn the prompt {item!r} into NaN or infinity"
                self.problems.append(Problem(f"{what}; {REMEDY}"))
