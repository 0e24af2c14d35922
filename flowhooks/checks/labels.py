"""Check what the labels of a run's data say: which samples were liked, which were not, and which say neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flowhooks.data.findings import count, some
from flowhooks.errors import Problem
from flowhooks.hooks.kto import DISLIKED, LIKED, KTOSpec, as_liked

if TYPE_CHECKING:
    from flowhooks.config import HookConfig, Run
    from flowhooks.data import Record


def label_problems(run: Run, records: Sequence[Record]) -> Iterator[Problem]:
    """Yield a problem for each objective on labels with cells that say neither that an image was liked nor that it was
    not. It names every such cell once, with the number of its samples and the first of them."""
    for hook, name, cells in _labelled(run, records):
        wrong: dict[str, list[Record]] = {}
        for record, cell in cells:
            if as_liked(cell) is None:
                wrong.setdefault(repr(cell), []).append(record)
        if wrong:
            total = sum(map(len, wrong.values()))
            kinds = [f"{cell} ({len(of):,}, first {of[0].key!r} of {of[0].dataset!r})" for cell, of in wrong.items()]
            message = (
                f"{total:,} of {count(len(cells), 'sample')} have no label in {name!r}: {some(kinds)}; expected one of "
                f"{', '.join(LIKED)}, or of {', '.join(DISLIKED)}"
            )
            yield Problem(message, str(run.source), f"{hook.where}.label")


def describe_labels(run: Run, records: Sequence[Record]) -> list[str]:
    """Return how many samples each objective on labels has of both kinds, in words."""
    return [
        f"{name!r}: {liked:,} liked, {len(cells) - liked:,} disliked"
        for _, name, cells in _labelled(run, records)
        for liked in (_liked(cells),)
        if cells
    ]


def label_warnings(run: Run, records: Sequence[Record]) -> list[str]:
    """Return a warning for each objective on labels whose samples are all of one kind."""
    found = []
    for hook, name, cells in _labelled(run, records):
        liked = _liked(cells)
        if cells and liked in (0, len(cells)):
            kind, other, moves = ("liked", "disliked", "to") if liked else ("disliked", "liked", "away from")
            found.append(
                f"{hook.where}.label: {_every(len(cells))} {kind} by {name!r}, and none is {other}; KTO tells the two "
                f"apart, and one kind alone only moves the model {moves} all of the data; add images that were {other}"
            )
    return found


def _labelled(run: Run, records: Sequence[Record]) -> Iterator[tuple[HookConfig, str, list[tuple[Record, Any]]]]:
    """Yield each objective on labels, the name of its label, and the samples that have one, with their cells."""
    for hook in run.hooks:
        name = hook.options["label"] if hook.type == KTOSpec.type else None
        if name is not None:
            yield hook, name, [(each, each.columns[name]) for each in records if name in each.columns]


def _every(number: int) -> str:
    return "the only sample is" if number == 1 else f"all {number:,} samples are"


def _liked(cells: Sequence[tuple[Record, Any]]) -> int:
    return sum(as_liked(cell) is True for _, cell in cells)
