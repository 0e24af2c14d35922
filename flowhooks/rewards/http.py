"""Let a server of the user's own judge images: alone, as the group of a prompt, or in pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import RewardError
from flowhooks.rewards.base import Records, SampleReferences, members, spread_frames
from flowhooks.rewards.client import ServedReward, png
from flowhooks.rewards.groups import all_pairs, shares_of_wins
from flowhooks.rewards.registry import HttpSpec


class HttpReward(HttpSpec, ServedReward):  # type: ignore[misc]
    """Sends images as PNG with their prompts and records, and returns the server's numbers.

    A video is sent as ``max_frames`` of its frames, evenly spread, which the server judges together.

    Raises:
        ValueError: on building, options that contradict each other.
        RewardError: on a call, the server gives no numbers; see :class:`flowhooks.rewards.client.ServedReward`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.compares = self.references or self.mask  # type: ignore[misc]
        if self.judges == "pairs":
            # Shares of wins; of several numbers the weighted sum is checked, whose bounds are others.
            self.range = (0.0, 1.0) if self.numbers is None else (None, None)

    def ready(self) -> None:
        self._scores(self.asked_once(), 0, "image", nothing=True)

    def __call__(  # type: ignore[override]
        self,
        pixels: Tensor,
        prompts: Sequence[str],
        records: Records,
        *references: Sequence[SampleReferences],
        groups: Sequence[int] = (),
    ) -> Tensor | dict[str, Tensor]:
        found: dict[str, list[float]] = {}
        order: list[int] = []
        for rows in self._requests(len(prompts), groups):
            own = [groups[row] for row in rows] if groups else []
            images = [self._image(pixels[row], prompts[row], records[row]) for row in rows]
            for i, row in enumerate(rows):
                images[i] |= {"group": own[i]} if groups else {}
                images[i] |= self._references(references[0][row]) if references else {}
            scores = self._pairwise(images, own) if self.judges == "pairs" else self._judged(images)
            for name, values in scores.items():
                found.setdefault(name, []).extend(values)
            order += rows
        placed = torch.tensor(order).argsort()
        tensors = {name: torch.tensor(values)[placed].to(pixels.device) for name, values in found.items()}
        return tensors[""] if self.numbers is None else tensors

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records, *references: Any) -> Tensor:
        """Return the values of images that stand alone."""
        return self(pictures, prompts, records, *references)  # type: ignore[return-value]

    def _requests(self, count: int, groups: Sequence[int]) -> Iterator[list[int]]:
        """Yield the rows of each request. A group is never divided."""
        parts = members(groups) if groups else [[row] for row in range(count)]
        rows: list[int] = []
        for part in parts:
            if rows and len(rows) + len(part) > self.batch_size:
                yield rows
                rows = []
            rows = [*rows, *part]
        if rows:
            yield rows

    def _image(self, sample: Tensor, prompt: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is sent of a sample ``[3, H, W]``, or of a video ``[3, F, H, W]``."""
        if sample.dim() == 4:
            frames = [sample[:, frame] for frame in spread_frames(sample.shape[1], self.max_frames)]
        else:
            frames = [sample]
        return self.with_record(prompt, record, frames)

    def _references(self, shown: SampleReferences) -> dict[str, Any]:
        found: dict[str, Any] = {"references": [png(image) for image in shown.images]} if self.references else {}
        if self.mask:
            if shown.mask is None:
                raise RewardError(f"reward {self.name!r} sends masks, and a sample has none; link masks in the data")
            found["mask"] = png(shown.mask)
        return found

    def _judged(self, images: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
        return self._scores(self.asked(images, judges=self.judges), len(images), "image")

    def _pairwise(self, images: Sequence[Mapping[str, Any]], groups: Sequence[int]) -> dict[str, list[float]]:
        pairs = [(rows[i], rows[j]) for rows in members(groups) for i, j in all_pairs(len(rows), self.both_orders)]
        answer = self.asked(images, judges=self.judges, pairs=pairs)
        found = self._scores(answer, len(pairs), "pair")
        for name, values in found.items():
            for i, value in enumerate(values):
                if not 0 <= value <= 1:
                    place = f"$.scores[{i}]" if not name else f"$.scores[{name!r}][{i}]"
                    self.refuse(
                        place, f"is {value:g}", "the probability in [0, 1] that the first of the pair is better"
                    )
        return {
            name: shares_of_wins(pairs, torch.tensor(values), len(images)).tolist() for name, values in found.items()
        }

    def _scores(self, answer: Any, count: int, what: str, *, nothing: bool = False) -> dict[str, list[float]]:
        """Return name -> numbers of an answer; the name is empty where it gives one number without a name.

        Args:
            nothing: whether it is the answer to no image, in which names may be left out.
        """
        scores = self.field(answer, "scores")
        if self.numbers is None or (nothing and scores == []):
            return {"": self.numbers_in(scores, "$.scores", count, what)}
        if not isinstance(scores, dict) or any(name not in scores for name in self.numbers):
            named = ", ".join(map(repr, self.numbers))
            had = f"has {', '.join(map(repr, scores)) or 'no names'}" if isinstance(scores, dict) else "has no names"
            self.refuse("$.scores", had, f"an object with {named}, as `numbers` says")
        return {name: self.numbers_in(scores[name], f"$.scores[{name!r}]", count, what) for name in self.numbers}
