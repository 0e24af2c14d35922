"""Decide by boxes and labels whether an image shows what a record of GenEval lists (Ghosh et al., arXiv 2310.11513).
Free of torch.

The rules are those of the released evaluation, github.com/djghosh13/geneval, `evaluation/evaluate_images.py`, written
anew:

* Of a class count the `max_objects` surest objects that the detector is surer of than the threshold; the threshold of
  records with the tag `counting` is its own.
* An entry of `include` asks for `count` objects of a `class` or more. Only the `count` surest ones are looked at: with
  a `color`, each of them must have it; with a `position`, ``[relation, i]``, each of them must stand in the relation
  to each of those that entry `i` found.
* An entry of `exclude` asks for fewer than `count` objects of a `class`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COUNTING = "counting"
RELATIONS = ("left of", "right of", "above", "below")
#: An offset below this, in pixels, is none.
_NOTHING = 1e-3
#: An object stands in a relation if this share of the offset lies in its direction.
_MOSTLY = 0.5

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Detected:
    """Holds one object of an image.

    Args:
        label: its class.
        box: left, top, right and bottom edge in pixels.
        score: how sure the detector is, in [0, 1].
        color: None where nobody looked.
    """

    label: str
    box: Box
    score: float
    color: str | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Holds the numbers of the rules; the options of the reward have their meaning."""

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1

    def met(self, record: Mapping[str, Any], objects: Sequence[Detected]) -> list[bool]:
        """Return for each entry of ``include``, then of ``exclude``, whether an image with these objects meets it.

        Raises:
            ValueError: an entry asks for a colour, and nobody looked at that of an object.
        """
        kept = self._kept(objects, record.get("tag") == COUNTING)
        found: list[Sequence[Detected] | None] = []
        for entry in record["include"]:
            those = kept.get(entry["class"], [])[: entry["count"]]
            right = len(those) == entry["count"] and self._colored(entry, those) and self._placed(entry, those, found)
            found.append(those if right else None)
        held = [len(kept.get(entry["class"], [])) < entry["count"] for entry in record.get("exclude") or ()]
        return [each is not None for each in found] + held

    def relations(self, one: Box, other: Box) -> set[str]:
        """Return how ``one`` stands to ``other``: none, one or two of :data:`RELATIONS`.

        Each axis of the offset between the centres is shortened by ``position_threshold`` of both sizes. What is left
        of it over the length of the whole offset tells the direction.
        """
        offset, left = [], []
        for axis in (0, 1):
            apart = (one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) / 2
            sizes = abs(one[axis + 2] - one[axis]) + abs(other[axis + 2] - other[axis])
            offset.append(apart)
            left.append(math.copysign(max(abs(apart) - self.position_threshold * sizes, 0), apart))
        if all(abs(each) < _NOTHING for each in left):
            return set()
        x, y = (each / math.hypot(*offset) for each in left)
        holds = (x < -_MOSTLY, x > _MOSTLY, y < -_MOSTLY, y > _MOSTLY)
        return {name for name, each in zip(RELATIONS, holds, strict=True) if each}

    def _kept(self, objects: Sequence[Detected], counting: bool) -> dict[str, list[Detected]]:
        """Return the objects of each class that count, the surest first."""
        least = self.counting_threshold if counting else self.threshold
        classes: dict[str, list[Detected]] = {}
        for each in sorted(objects, key=lambda found: -found.score):
            if each.score > least:
                classes.setdefault(each.label, []).append(each)
        return {label: self._apart(those[: self.max_objects]) for label, those in classes.items()}

    def _apart(self, objects: Sequence[Detected]) -> list[Detected]:
        if self.max_overlap == 1:
            return list(objects)
        kept: list[Detected] = []
        for each in objects:
            if all(overlap(each.box, other.box) < self.max_overlap for other in kept):
                kept.append(each)
        return kept

    def _colored(self, entry: Mapping[str, Any], those: Sequence[Detected]) -> bool:
        if "color" not in entry:
            return True
        if any(each.color is None for each in those):
            raise ValueError(f"the record asks for the color of {entry['class']!r}")
        return all(each.color == entry["color"] for each in those)

    def _placed(
        self, entry: Mapping[str, Any], those: Sequence[Detected], found: Sequence[Sequence[Detected] | None]
    ) -> bool:
        if "position" not in entry:
            return True
        relation, at = entry["position"]
        targets = found[at]
        return targets is not None and all(
            relation in self.relations(each.box, target.box) for each in those for target in targets
        )


def overlap(one: Box, other: Box) -> float:
    """Return the intersection over union of two boxes, whose edges are pixels that belong to them."""

    def area(box: Box) -> float:
        return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

    shared = area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))
    together = area(one) + area(other) - shared
    return shared / together if together else 0.0


def record_faults(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong in a record, with the place in it."""
    include = record.get("include")
    if not isinstance(include, list) or not include:
        yield "has no list under `include`; take the lines of GenEval's metadata.jsonl, or write it as there"
        return
    if not isinstance(record.get("exclude") or [], list):
        yield "`exclude` is no list"
        return
    for part in ("include", "exclude"):
        for i, entry in enumerate(record.get(part) or ()):
            place = f"`{part}[{i}]`"
            if not isinstance(entry, Mapping) or not isinstance(entry.get("class"), str):
                yield f"{place} names no `class`"
            elif type(entry.get("count")) is not int or entry["count"] < 1:
                yield f"{place} has no `count` of 1 or more"
            elif part == "include" and "position" in entry:
                yield from _position_faults(entry["position"], i, place)


def _position_faults(position: Any, index: int, place: str) -> Iterator[str]:
    if not isinstance(position, list) or len(position) != 2 or position[0] not in RELATIONS:
        yield f"{place}: `position` is {position!r}, expected [one of {', '.join(map(repr, RELATIONS))}, an entry]"
    elif type(position[1]) is not int or not 0 <= position[1] < index:
        yield f"{place}: `position` names entry {position[1]!r}, expected one before it, counted from 0"
