"""Turn rows that each show one image with a score, or with its place in a ranking, into pairs.

The better image of a pair is the image of the sample, the worse one its rejected side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from flowhooks.data.assets import Asset
from flowhooks.data.blocks import GROUP, ORDER, PREFERENCE, SCORE
from flowhooks.data.findings import Findings, count
from flowhooks.data.ranking import choose, unpaired
from flowhooks.data.sources.inspecting import Fault, Inspector
from flowhooks.data.sources.sides import number_in
from flowhooks.json_faults import json_path

if TYPE_CHECKING:
    from flowhooks.data.sources.rows import Row

#: What stands for the column of the rejected sides.
REJECTED = "rejected"
_STRATEGIES = ("column", "instanceprompt")


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Says by which columns images are compared.

    Args:
        number: the column of the scores or places.
        of_places: whether they are places, of which 1 is the best.
        group: the column of the groups; None where captions are the groups.
        way: `best-worst`, `adjacent` or `all`.
        min_gap: least difference of two numbers.
    """

    number: str
    of_places: bool
    group: str | None
    way: str
    min_gap: float


def ranking_of(block: Mapping[str, Any]) -> Ranking | None:
    """Return how the images of a set are compared, whose block has no fault; None where they are not."""
    if not block["pairs"]:
        return None
    named = block["columns"]
    return Ranking(
        number=named.get(SCORE) or named[ORDER],
        of_places=SCORE not in named,
        group=named.get(GROUP),
        way=block["pairs"],
        min_gap=block["min_gap"],
    )


def ranking_faults(block: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield (JSON path, message) for what does not fit together in the keys that make pairs of single images."""
    named = block["columns"] or {}
    where = f"{path}.pairs"
    if not block["pairs"]:
        if block["min_gap"]:
            yield f"{path}.min_gap", "does nothing without `pairs`; name the pairs to make, or remove it"
        return
    if (SCORE in named) == (ORDER in named):
        both = "both are named" if SCORE in named else "there is none"
        yield where, f"needs one column of numbers under `columns`, `{SCORE}` or `{ORDER}`, and {both}"
    if PREFERENCE in named:
        yield where, f"makes pairs of rows of one image, and `{PREFERENCE}` is for rows of two; remove one of the two"
    if block["rejected_column"] or REJECTED in named:
        yield where, "makes the rejected sides itself, and the set names a column of them; remove one of the two"
    if block["caption_strategy"] not in _STRATEGIES:
        ways = " or ".join(map(repr, _STRATEGIES))
        yield f"{path}.caption_strategy", f"images that `pairs` compares share a caption; take {ways}"
    elif block["caption_strategy"] != "column" and GROUP not in named:
        yield where, f"compares images of one caption, which is the same for all here; name a column as `{GROUP}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """Holds one row: its group, its score, of which more is better, and its place in the source."""

    row: Row
    group: str
    score: float
    line: int


@dataclass
class Ranks:
    """Makes pairs of the rows of each group, and counts the rows that make none."""

    ranking: Ranking
    image: str
    name: str
    values: tuple[str, ...] = ()
    scored: list[_Image] = field(default_factory=list)
    chosen: list[tuple[_Image, _Image]] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    groupless: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    def paired(self, rows: Iterable[Row], inspector: Inspector) -> Iterator[Row]:
        """Yield a row for each pair, of the better image, the worse one in the column :data:`REJECTED`.

        Args:
            rows: all rows of the source.
            inspector: looks at every image, in the order of the source.
        """
        self.scored = self._agreeing(self._read(rows, inspector))
        self.chosen = list(choose(self.scored, self.ranking.way, self.ranking.min_gap))
        for better, worse in self.chosen:
            one, other = better.row, worse.row
            # A set of masks or references pairs by the image's own name, which is the pair's where it has one pair.
            key = one.key if self.ranking.way == "best-worst" else f"{one.key} over {PurePosixPath(other.key).name}"
            pictures = {**one.pictures, REJECTED: other.pictures[self.image]}
            yield replace(one, name=f"{one.name} over {other.name}", key=key, pictures=pictures)

    def report(self, path: str, found: Findings) -> None:
        """Add what was paired to the notes, groups without a pair to the warnings, and what cannot be compared to the
        problems."""
        key = ORDER if self.ranking.of_places else SCORE
        where = json_path(["columns", key], path)
        grouped = json_path(["columns", GROUP], path) if self.ranking.group else f"{path}.pairs"
        found.listing(where, self.faults, f"rows whose {self.ranking.number!r} is no finite number", "correct them")
        what = f"rows with nothing in {self.ranking.group!r}" if self.ranking.group else "rows without a caption"
        found.listing(grouped, self.groupless, what, "fill the cells, or take these rows out")
        found.listing(grouped, self.again, "rows that show an image of their group again", "keep one of each")
        what = "rows with another caption than their group"
        found.listing(grouped, self.differing, what, "images are compared under one caption: correct them")
        groups = count(len({each.group for each in self.scored}), "group")
        made = f"{count(len(self.chosen), 'pair')} ({self.ranking.way}) of {count(len(self.scored), 'image')}"
        left = f"; {count(len(self.unscored), 'row')} without a number left out" if self.unscored else ""
        found.notes.append(f"{self.name}: {made} in {groups}{left}")
        if not self.chosen:
            if not (self.faults or self.groupless):
                least = f" by {self.ranking.min_gap:g} or more" if self.ranking.min_gap else ""
                why = f"no two images of a group differ{least} ({groups}{left})" if self.scored else f"no images{left}"
                found.problem(f"{path}.pairs", f"gives no pair: {why}")
        elif alone := unpaired(self.scored, self.chosen):
            found.warnings.append(f"{self.name}: {alone}")

    def _read(self, rows: Iterable[Row], inspector: Inspector) -> Iterator[_Image]:
        for line, row in enumerate(rows):
            cell = row.pictures.get(self.image)
            if inspector.look(cell or Fault(f"has nothing in {self.image!r}"), row.name) is None:
                continue
            try:
                number = number_in(row.cells.get(self.ranking.number))
            except ValueError as fault:
                self.faults.append(f"{row.name} {fault}")
                continue
            group = _text(row.cells.get(self.ranking.group) if self.ranking.group else row.caption)
            if number is None:
                self.unscored.append(row.name)
            elif not group:
                self.groupless.append(row.name)
            else:
                # Kept until all rows are read: not the bytes of its images, which cells may hold.
                row = replace(row, cells={name: row.cells.get(name) for name in self.values})
                yield _Image(row=row, group=group, score=-number if self.ranking.of_places else number, line=line)

    def _agreeing(self, scored: Iterable[_Image]) -> list[_Image]:
        """Return the images, those without a caption under that of their group. Another caption, and an image that its
        group has twice, are faults."""
        images = list(scored)
        captions: dict[str, _Image] = {}
        seen: set[tuple[str, Asset | Fault | None]] = set()
        for each in images:
            if _text(each.row.caption):
                first = captions.setdefault(each.group, each)
                if _text(first.row.caption) != _text(each.row.caption):
                    self.differing.append(each.row.name)
            shown = (each.group, each.row.pictures[self.image])
            if shown in seen:
                self.again.append(each.row.name)
            seen.add(shown)
        shared = {group: first.row.caption for group, first in captions.items()}
        return [replace(each, row=replace(each.row, caption=shared.get(each.group))) for each in images]


def _text(cell: Any) -> str:
    """Return a cell as text without surrounding blanks, empty where there is none."""
    if isinstance(cell, bytes):
        cell = cell.decode("utf-8", "surrogateescape")
    return "" if cell is None or cell != cell else str(cell).strip()
