"""Define the interface of a reward, and the base class of all rewards of single images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from flowhooks.autocast import without_autocast
from flowhooks.errors import RewardError


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleReferences:
    """Holds what a sample was made from, for rewards that compare.

    Args:
        images: its references, in their order, each ``[3, h, w]`` of a size of its own, fp32 in [0, 1].
        mask: ``[1, h, w]`` in [0, 1] on any grid, 1 where the sample may differ; None where the data has none.
    """

    images: tuple[Tensor, ...]
    mask: Tensor | None = None


Range = tuple[float | None, float | None]
Records = Sequence[Mapping[str, Any]]
#: What a reward looks at to give an image its number: that image, pairs of its group, or its whole group.
IMAGE = "image"


@runtime_checkable
class Reward(Protocol):
    """Judges images. It is never trained, and in no checkpoint.

    One that compares an image with what it was made from has an attribute ``compares`` that is true, and is called with
    a fourth argument: for each image its :class:`SampleReferences`, with one image or more.

    One that judges the images of a prompt together has an attribute ``judges``, ``group`` or ``pairs``, and is called
    with the keyword ``groups``: for each image the number of its group, of two images or more.

    One with an attribute ``numbers``, name -> weight, returns a mapping of these names to ``[B]`` in place of a tensor;
    its value is their weighted sum, and each is measured too. One that is ``retryable`` is asked again where it raises
    an exception that is no error of flowhooks.
    """

    @property
    def name(self) -> str:
        """Return its name in logs and errors; the rewards of a run have different names."""

    @property
    def range(self) -> Range:
        """Return the lowest and the highest value that it can have; None for no bound."""

    @property
    def differentiable(self) -> bool:
        """Return whether its values have a gradient with respect to the pixels."""

    def to(self, device: torch.device | str) -> Self:
        """Move everything it computes with; returns itself."""

    def __call__(self, pixels: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        """Return a value for each image, ``[B]``, higher for better.

        Args:
            pixels: ``[B, 3, H, W]``, or video ``[B, 3, F, H, W]``, fp32 in [0, 1]; of sound, waveforms ``[B, channels,
                samples]`` in [-1, 1].
            prompts: prompts of the images.
            records: for each prompt, a mapping with the other columns of its file.
        """


class PictureReward(ABC):
    """Judges single images; for a video it returns the mean over evenly spread frames.

    A class of your own defines ``score``, and the attributes below if their defaults are wrong for it.

    Args:
        name: name in logs and errors.
        max_frames: largest number of frames of a video to judge, at least 1.
    """

    range: Range = (None, None)
    differentiable: bool = True
    #: Whether ``score`` takes the references of the images too.
    compares: bool = False
    #: ``image``, or ``group``: ``score`` is called for the images of one group at a time. Of pairs see ``PairReward``.
    judges: str = IMAGE
    #: Whether ``score`` may be called again where it raised.
    retryable: bool = False

    def __init__(self, *, name: str, max_frames: int = 8):
        if max_frames < 1:
            raise ValueError(f"`max_frames` must be at least 1, got {max_frames}")
        self.name, self.max_frames = name, max_frames

    @abstractmethod
    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records, *references: Any) -> Tensor:
        """Return values ``[N]`` of images ``[N, 3, H, W]``, fp32 in [0, 1], with a prompt and a record each, and, where
        it ``compares``, :class:`SampleReferences` each."""

    def to(self, device: torch.device | str) -> Self:
        return self

    def __call__(
        self,
        pixels: Tensor,
        prompts: Sequence[str],
        records: Records,
        *references: Sequence[SampleReferences],
        groups: Sequence[int] = (),
    ) -> Tensor:
        pixels = pixels.to(torch.promote_types(pixels.dtype, torch.float32))
        with without_autocast(pixels):
            frames = [0] if pixels.dim() == 4 else spread_frames(pixels.shape[2], self.max_frames)
            if groups:
                return self._of_groups(pixels, frames, groups, prompts, records, *references)
            if pixels.dim() == 4:
                return self.score(pixels, prompts, records, *references)
            pictures = pixels[:, :, frames].transpose(1, 2).flatten(0, 1)
            beside = (_repeated(each, len(frames)) for each in (prompts, records, *references))
            values = self.score(pictures, *beside)
            return values.unflatten(0, (-1, len(frames))).mean(1)

    def _of_groups(
        self, pixels: Tensor, frames: Sequence[int], groups: Sequence[int], *beside: Sequence[Any]
    ) -> Tensor:
        """Return ``[B]``: of videos, a frame meets the frames of its time."""
        order, found = [], []
        for rows in members(groups):
            shots = [pixels[rows] if pixels.dim() == 4 else pixels[rows, :, frame] for frame in frames]
            own = [[each[row] for row in rows] for each in beside]
            found.append(torch.stack([self.score(shot, *own) for shot in shots]).mean(0))
            order += rows
        return torch.cat(found)[torch.tensor(order).argsort().to(pixels.device)]


def members(groups: Iterable[int]) -> list[list[int]]:
    """Return the rows of each group, in the order in which groups first appear.

    Args:
        groups: for each image, the number of its group.
    """
    found: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        found.setdefault(group, []).append(row)
    return list(found.values())


def spread_frames(count: int, most: int) -> list[int]:
    """Return positions of at most ``most`` of ``count`` frames: the first, the last, and others evenly between; for
    ``most`` 1, the middle one."""
    if most == 1:
        return [count // 2]
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def column(records: Records, key: str, name: str, prompts: Sequence[str]) -> list[Any]:
    """Return what all records hold under ``key``.

    Raises:
        RewardError: one of them lacks it, or holds null.
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
    """Computes a reward with a ``network``."""

    network: Any

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    @property
    def network_dtype(self) -> torch.dtype:
        """Return the dtype of the network. Images are prepared, and results returned, in fp32 or better."""
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
