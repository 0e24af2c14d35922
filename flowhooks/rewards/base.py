"""What a reward is, and the part that all rewards of single images share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from flowhooks.errors import RewardError

Range = tuple[float | None, float | None]
Records = Sequence[Mapping[str, Any]]


@runtime_checkable
class Reward(Protocol):
    """Judges images. Never trained, and in no checkpoint."""

    @property
    def name(self) -> str:
        """What logs and errors call it; one of a kind in a run."""

    @property
    def range(self) -> Range:
        """Lowest and highest value that it can give; None for no bound."""

    @property
    def differentiable(self) -> bool:
        """Whether its values have a gradient with respect to the pixels."""

    def to(self, device: torch.device | str) -> Self:
        """Move all it computes with; returns itself."""

    def __call__(self, pixels: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        """``[B]``, higher for better.

        Args:
            pixels: ``[B, 3, H, W]``, or video ``[B, 3, F, H, W]``, fp32 in [0, 1].
            prompts: what the images were asked to show.
            records: a mapping for each prompt, of the columns that its file has beside it.
        """


class PictureReward(ABC):
    """A reward of single images; that of a video is the mean over evenly spread frames.

    A class of your own gives ``score``, and ``range`` and ``differentiable`` where these defaults are not right.

    Args:
        name: what logs and errors call it.
        max_frames: of a video, at least 1.
    """

    range: Range = (None, None)
    differentiable: bool = True

    def __init__(self, *, name: str, max_frames: int = 8):
        if max_frames < 1:
            raise ValueError(f"`max_frames` must be at least 1, got {max_frames}")
        self.name, self.max_frames = name, max_frames

    @abstractmethod
    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        """``[N]`` of images ``[N, 3, H, W]``, fp32 in [0, 1], with a prompt and a record each."""

    def to(self, device: torch.device | str) -> Self:
        return self

    def __call__(self, pixels: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        with torch.autocast(pixels.device.type, enabled=False):
            if pixels.dim() == 4:
                return self.score(pixels, prompts, records)
            frames = spread_frames(pixels.shape[2], self.max_frames)
            pictures = pixels[:, :, frames].transpose(1, 2).flatten(0, 1)
            values = self.score(pictures, _repeated(prompts, len(frames)), _repeated(records, len(frames)))
            return values.unflatten(0, (-1, len(frames))).mean(1)


def spread_frames(count: int, most: int) -> list[int]:
    """Positions of at most ``most`` of ``count`` frames: the first, the last, and others evenly between; of one, the
    middle."""
    if most == 1:
        return [count // 2]
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def column(records: Records, key: str, name: str, prompts: Sequence[str]) -> list[Any]:
    """What all records hold under ``key``.

    Raises:
        RewardError: one of them does not have it, or holds null.
    """
    for record, prompt in zip(records, prompts, strict=True):
        if record.get(key) is None:
            has = ", ".join(repr(each) for each in record) or "no columns"
            raise RewardError(
                f"reward {name!r} reads the column {key!r}, which the record of prompt {prompt!r} does not fill; it "
                f"has {has}; add the column to the prompts, or name another"
            )
    return [record[key] for record in records]


def _repeated(items: Sequence[Any], times: int) -> list[Any]:
    return [item for item in items for _ in range(times)]


class ModelReward(PictureReward):
    """A reward that computes with a ``network``."""

    network: Any

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    @property
    def network_dtype(self) -> torch.dtype:
        """What the network computes in. Images are prepared, and results given, in fp32 or better."""
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
