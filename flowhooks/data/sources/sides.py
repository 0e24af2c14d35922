"""Turn rows that show two images and say which one was preferred into pairs, as public sets of votes are kept.

The side with the larger number is the image of the sample, the other one its rejected side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flowhooks.data.blocks import PREFERENCE
from flowhooks.data.findings import Findings, count
from flowhooks.data.sources.inspecting import Fault

if TYPE_CHECKING:
    from flowhooks.data.sources.rows import Row


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Names the columns of a row's two sides.

    Args:
        images: the columns of the two images; the first is that of the sample, the second that of its rejected side.
        numbers: the columns of their two numbers, in this order, or one column that holds a list of both.
    """

    images: tuple[str, ...]
    numbers: tuple[str, ...]


@dataclass
class Votes:
    """Gives each row's images the places that its numbers say, and counts the rows that say nothing.

    Where ties are kept, rows get a cell :data:`~flowhooks.data.blocks.PREFERENCE`: 1 where the image was preferred, and
    0.5 for a tie.
    """

    sides: Sides
    keep_ties: bool = False
    ties: int = 0
    swapped: int = 0
    pairs: int = 0
    unlabelled: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def ordered(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows that prefer one side, and ties where they are kept; rows without numbers are left out."""
        first, second = self.sides.images
        for row in rows:
            try:
                numbers = self._numbers(row.cells)
            except ValueError as fault:
                self.faults.append(f"{row.name} {fault}")
                continue
            if numbers is None:
                self.unlabelled.append(row.name)
                continue
            tied = numbers[0] == numbers[1]
            if self.keep_ties:
                row = replace(row, cells={**row.cells, PREFERENCE: 0.5 if tied else 1.0})
            if tied:
                self.ties += 1
                if self.keep_ties:
                    yield row
            else:
                self.pairs += 1
                if numbers[0] < numbers[1]:
                    self.swapped += 1
                    turned = {first: row.pictures[second], second: row.pictures[first]}
                    row = replace(row, pictures={**row.pictures, **turned})
                yield row

    def report(self, where: str, name: str, found: Findings) -> None:
        """Add what was left out to the notes, and cells that are no numbers to the problems."""
        named = " and ".join(map(repr, self.sides.numbers))
        found.listing(where, self.faults, f"rows whose {named} cannot be compared", "correct them")
        first, second = self.sides.images
        left = [
            *([f"{count(self.ties, 'tie')} {'kept' if self.keep_ties else 'left out'}"] if self.ties else []),
            *([f"{count(len(self.unlabelled), 'row')} without a preference left out"] if self.unlabelled else []),
        ]
        prefer = "prefers" if self.swapped == 1 else "prefer"
        shown = f"{count(self.pairs, 'pair')}, of which {self.swapped:,} {prefer} {second!r} to {first!r}"
        found.notes.append("; ".join([f"{name}: {shown}", *left]))
        if not (self.pairs or self.faults or (self.keep_ties and self.ties)):
            found.problem(where, f"prefers neither side in any row ({'; '.join(left) or 'there are no rows'})")

    def _numbers(self, cells: Mapping[str, Any]) -> tuple[float, float] | None:
        """Return the numbers of the two sides; None where one is missing. Raises ValueError where one is no number."""
        values = [cells.get(column) for column in self.sides.numbers]
        if len(values) == 1 and isinstance(values[0], Sequence) and not isinstance(values[0], (str, bytes)):
            values = list(values[0])
            if len(values) != 2:
                raise ValueError(f"holds {count(len(values), 'number')} in {self.sides.numbers[0]!r}, not 2")
        elif len(values) == 1 and values[0] is not None:
            raise ValueError(f"holds no list of 2 numbers in {self.sides.numbers[0]!r}")
        numbers = [number_in(value) for value in values]
        if len(numbers) < 2 or None in numbers:
            return None
        return numbers[0], numbers[1]  # type: ignore[return-value]


def number_in(value: Any) -> float | None:
    """Return a cell as a number; None where it is empty or NaN. Raises ValueError for anything else, and where it is
    infinite."""
    if isinstance(value, Fault):
        raise ValueError(value.reason)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"holds {value!r:.60}, which is no number") from None
    if math.isinf(number):
        raise ValueError("holds an infinite number")
    return None if math.isnan(number) else number
