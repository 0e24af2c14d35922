"""Find the two sides of pairs in the names of files that are in one folder, such as ``a_w.png`` and ``a_l.png``. Free
of torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import product

#: What the two sides of pairs are called.
PREFERRED = ("preferred", "chosen", "win", "winner", "winners", "good", "better", "w")
REJECTED = ("rejected", "lose", "loser", "losers", "bad", "worse", "l")
_BETWEEN = ("_", "-", ".")


@dataclass(frozen=True, kw_only=True)
class PairNames:
    """Says which files of a folder are pairs.

    Args:
        patterns: of the preferred and of the rejected side, as `pair_names` has them.
        names: what `*` stands for in names that both sides have.
        alone: stems of the preferred side without a rejected one.
        strange: the other stems: of no side, or of a rejected one that has no preferred one.
    """

    patterns: tuple[str, str]
    names: frozenset[str]
    alone: frozenset[str]
    strange: frozenset[str]

    def captioned_by(self, texts: Collection[str]) -> frozenset[str]:
        """Return the names of pairs that have a text: of the pair's name, or of its preferred side's."""
        return frozenset(name for name in self.names if name in texts or self.preferred(name) in texts)

    def preferred(self, name: str) -> str:
        """Return the stem of a pair's preferred side."""
        return self.patterns[0].replace("*", name)


def pair_names(stems: Iterable[str]) -> PairNames | None:
    """Return the endings that pair most of these stems, None where none pairs any.

    Args:
        stems: paths without suffix, such as ``sub/a_w``.
    """
    known = frozenset(stems)
    found = [_paired(known, between, words) for between in _BETWEEN for words in product(PREFERRED, REJECTED)]
    best = max(found, key=lambda each: len(each.names))
    return best if best.names else None


def _paired(stems: frozenset[str], between: str, words: tuple[str, str]) -> PairNames:
    preferred, rejected = (frozenset(_without(stems, f"{between}{word}")) for word in words)
    names = preferred & rejected
    alone = frozenset(f"{name}{between}{words[0]}" for name in preferred - names)
    sides = {f"{name}{between}{word}" for name in names for word in words}
    return PairNames(
        patterns=(f"*{between}{words[0]}", f"*{between}{words[1]}"),
        names=names,
        alone=alone,
        strange=stems - alone - sides,
    )


def _without(stems: Iterable[str], ending: str) -> Iterable[str]:
    return (stem.removesuffix(ending) for stem in stems if stem.endswith(ending) and stem != ending)
