"""Exchange texts and errors between the processes of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed as dist

from flowhooks import distributed
from flowhooks.errors import FlowhooksError


def gather(text: str) -> list[str]:
    """Return one text from every process, in the order of ranks."""
    if distributed.world_size() == 1:
        return [text]
    texts: list[str] = [""] * distributed.world_size()
    dist.all_gather_object(texts, text)
    return texts


@contextmanager
def raise_on_all_ranks(kind: type[FlowhooksError]) -> Iterator[None]:
    """Let all processes leave the block, or none: when one fails, the others raise ``kind`` with its message instead of
    waiting."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    said = [text for text in gather("" if failure is None else f"{failure}") if text]
    if failure is not None:
        raise failure
    if said:
        raise kind(said[0])
