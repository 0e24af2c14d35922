"""Judge images by the objects that a detector of the user's own finds in them, as GenEval does (arXiv 2310.11513)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import RewardError
from flowhooks.rewards.base import Records
from flowhooks.rewards.client import ServedReward
from flowhooks.rewards.geneval_rules import Detected, Rules, record_faults
from flowhooks.rewards.registry import GenEvalSpec


class GenEval(GenEvalSpec, ServedReward):
    """Sends images with their records to a detector, and judges what it found by
    :class:`flowhooks.rewards.geneval_rules.Rules`.

    Raises:
        RewardError: on a call, a record is none of GenEval's, or the detector's answer is none.
    """

    range = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rules = Rules(
            threshold=self.threshold,
            counting_threshold=self.counting_threshold,
            max_objects=self.max_objects,
            max_overlap=self.max_overlap,
            position_threshold=self.position_threshold,
        )

    def ready(self) -> None:
        self._objects(self.asked_once(), 0)

    def score_of(self, met: Sequence[bool]) -> float:
        """Return what an image is worth that meets these entries of its record."""
        return float(all(met)) if self.result == "correct" else sum(met) / len(met)

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records, *references: Any) -> Tensor:
        for prompt, record in zip(prompts, records, strict=True):
            for fault in record_faults(record):
                raise RewardError(f"reward {self.name!r}: the record of prompt {prompt!r} {fault}")
        found: list[float] = []
        for start in range(0, len(prompts), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(prompts)))
            images = [self.with_record(prompts[row], records[row], [pictures[row]]) for row in rows]
            objects = self._objects(self.asked(images), len(images))
            found += [
                self._worth(i, those, records[row]) for i, (row, those) in enumerate(zip(rows, objects, strict=True))
            ]
        return torch.tensor(found, dtype=torch.float32, device=pictures.device)

    def _worth(self, at: int, objects: Sequence[Detected], record: Mapping[str, Any]) -> float:
        try:
            return self.score_of(self._rules.met(record, objects))
        except ValueError as error:
            self.refuse(
                f"$.objects[{at}]", f"has objects without a color, and {error}", "a `color` of each such object"
            )

    def _objects(self, answer: Any, count: int) -> list[list[Detected]]:
        entries = self.listed(self.field(answer, "objects"), "$.objects", count, "image")
        found = []
        for i, those in enumerate(entries):
            if not isinstance(those, list):
                self.refuse(f"$.objects[{i}]", f"is {type(those).__name__}", "the list of the objects of an image")
            found.append([self._object(each, f"$.objects[{i}][{j}]") for j, each in enumerate(those)])
        return found

    def _object(self, value: Any, place: str) -> Detected:
        label, box, score = (self.field(value, key, place) for key in ("label", "box", "score"))
        if not isinstance(label, str):
            self.refuse(f"{place}.label", f"is {label!r}", "the name of a class")
        left, top, right, bottom = self.numbers_in(box, f"{place}.box", 4, "edge: left, top, right, bottom")
        (sure,) = self.numbers_in([score], f"{place}.score", 1, "object")
        color = value.get("color")
        if color is not None and not isinstance(color, str):
            self.refuse(f"{place}.color", f"is {color!r}", "the name of a color, or null")
        return Detected(label=label, box=(left, top, right, bottom), score=sure, color=color)
