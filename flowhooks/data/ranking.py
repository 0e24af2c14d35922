"""Choose pairs of better and worse among images that have scores. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, pairwise
from typing import Protocol, TypeVar

from flowhooks.data.findings import count, some

WAYS = ("best-worst", "adjacent", "all")


class Comparable(Protocol):
    """An image with a score: more is better. Images of one group are compared; `line` is its place in the source."""

    @property
    def group(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def line(self) -> int: ...


S = TypeVar("S", bound=Comparable)


def choose(scored: Iterable[S], way: str, min_gap: float) -> Iterator[tuple[S, S]]:
    """Yield better and worse image of every pair, group by group in the order of the source.

    Args:
        scored: images.
        way: `best-worst` makes one pair per group, `adjacent` pairs neighbours by score, `all` every two images.
        min_gap: least difference of scores, >= 0. Equal scores never pair.
    """
    for members in _groups(scored).values():
        # Among equal scores the earlier line counts as the better one, so that the choice is reproducible.
        ranked = sorted(members, key=lambda each: (-each.score, each.line))
        match way:
            case "best-worst":
                pairs: Iterable[tuple[S, S]] = [(ranked[0], ranked[-1])]
            case "adjacent":
                pairs = pairwise(ranked)
            case _:
                pairs = combinations(ranked, 2)
        for better, worse in pairs:
            gap = better.score - worse.score
            if gap > 0 and gap >= min_gap:
                yield better, worse


def unpaired(scored: Iterable[S], pairs: Sequence[tuple[S, S]]) -> str | None:
    """Name the groups of which no two images were paired, with the reason; None where there are none."""
    paired = {better.group for better, _ in pairs}
    alone = {name: len(members) for name, members in _groups(scored).items() if name not in paired}
    if not alone:
        return None
    single = [name for name, members in alone.items() if members == 1]
    close = [name for name, members in alone.items() if members > 1]
    reasons = [
        *([f"{len(single):,} of one image ({some(single)})"] if single else []),
        *([f"{len(close):,} of scores that are equal or too close ({some(close)})"] if close else []),
    ]
    return f"{count(len(alone), 'group')} without a pair: {', '.join(reasons)}"


def _groups(scored: Iterable[S]) -> dict[str, list[S]]:
    groups: dict[str, list[S]] = {}
    for each in scored:
        groups.setdefault(each.group, []).append(each)
    return groups
