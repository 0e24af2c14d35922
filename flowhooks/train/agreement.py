"""Exchange texts and errors between the processes of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import distributed as dist

from flowhooks import distributed
from flowhooks.errors import FlowhooksError


@contextmanager
def aside() -> Iterator[Any]:
    """Yield a group of all processes on which threads beside the steps exchange texts, so that they do not meet the
    exchanges of the steps; None where a process is alone."""
    if distributed.world_size() == 1:
        yield None
        return
    group = dist.new_group(backend="gloo")
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def gather(text: str, group: Any = None) -> list[str]:
    """Return one text from every process, in the order of ranks.

    Args:
        group: see :func:`aside`; None is that of the steps.
    """
    if distributed.world_size() == 1:
        return [text]
    texts: list[str] = [""] * distributed.world_size()
    dist.all_gather_object(texts, text, group=group)
    return texts


@contextmanager
def raise_on_all_ranks(kind: type[FlowhooksError], group: Any = None) -> Iterator[None]:
    """Let all processes leave the block, or none: when one fails, the others raise ``kind`` with its message instead of
    waiting."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    said = [text for text in gather("" if failure is None else f"{failure}", group) if text]
    if failure is not None:
        raise failure
    if said:
        raise kind(said[0])
