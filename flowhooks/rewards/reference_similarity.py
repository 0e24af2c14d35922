"""Reward an edit for what it left alone: similarity of an image and its reference, everywhere or outside a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from flowhooks.errors import RewardError
from flowhooks.rewards.base import PictureReward, Records, SampleReferences

#: Edge of the window of structural similarity in pixels, and the deviation of its weights.
WINDOW, DEVIATION = 11, 1.5
#: What steadies its quotients, for values in [0, 1].
STEADY = 0.01**2, 0.03**2


def structural_similarity(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Return the mean structural similarity ``[N]``, in [-1, 1], of images ``[N, 3, H, W]`` in [0, 1] (Wang et al.,
    IEEE Transactions on Image Processing 13, 2004), over all windows inside the image, each by the weight in it.

    Args:
        weight: ``[N, 1, H, W]`` in [0, 1]; pixels of weight 0 are in no mean, variance or covariance.
    """
    edge = min(WINDOW, *one.shape[-2:])
    steps = torch.arange(edge, dtype=one.dtype, device=one.device) - (edge - 1) / 2
    line = torch.exp(-(steps**2) / (2 * DEVIATION**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def windowed(values: Tensor) -> Tensor:
        return conv2d(values.flatten(0, 1).unsqueeze(1), window).unflatten(0, values.shape[:2])

    held = windowed(weight)
    total = held.clamp(min=torch.finfo(held.dtype).tiny)

    def mean(values: Tensor) -> Tensor:
        return windowed(values * weight) / total

    a, b = mean(one), mean(other)
    both = mean(one * other) - a * b
    squares = mean(one * one) - a * a + mean(other * other) - b * b
    level, contrast = STEADY
    found = (2 * a * b + level) * (2 * both + contrast) / ((a * a + b * b + level) * (squares + contrast))
    return _weighted(found, held)


def _weighted(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean ``[N]`` of values ``[N, C, H, W]`` by weights ``[N, 1, H, W]``; 0 where all of them are 0."""
    total = weight.flatten(1).sum(1) * values.shape[1]
    return (values * weight).flatten(1).sum(1) / total.clamp(min=torch.finfo(values.dtype).tiny)


class ReferenceSimilarity(PictureReward):
    """Returns the similarity of each image and its reference, which is scaled to cover the image and cut at its centre.

    Args:
        measure: ``ssim``, ``l1`` or ``l2``.
        outside_mask: compare only where the mask of a sample is 0.
        reference: place of the reference among those of a sample.

    Raises:
        RewardError: on a call, a sample has too few references, or no mask.
    """

    compares = True

    def __init__(
        self,
        *,
        measure: str = "ssim",
        outside_mask: bool = False,
        reference: int = 0,
        name: str = "reference_similarity",
        max_frames: int = 8,
    ):
        super().__init__(name=name, max_frames=max_frames)
        self.measure, self.outside_mask, self.reference = measure, outside_mask, reference
        self.range = (-1.0 if measure == "ssim" else 0.0, 1.0)

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records, *references: Any) -> Tensor:
        (shown,) = references
        others = torch.stack([self._reference(each, pictures, p) for each, p in zip(shown, prompts, strict=True)])
        weight = torch.stack([self._weight(each, pictures, p) for each, p in zip(shown, prompts, strict=True)])
        if self.measure == "ssim":
            return structural_similarity(pictures, others, weight)
        apart = pictures - others
        # 1 less the mean difference, so that pixels of weight 0 count in neither.
        return _weighted(1 - (apart.abs() if self.measure == "l1" else apart.square()), weight)

    def _reference(self, shown: SampleReferences, like: Tensor, prompt: str) -> Tensor:
        if self.reference >= len(shown.images):
            raise RewardError(
                f"reward {self.name!r} compares with reference {self.reference}, counted from 0, and the sample of "
                f"prompt {prompt!r} has {len(shown.images)}; lower `reference`, or give it more"
            )
        return covering(shown.images[self.reference].to(like.device, like.dtype), *like.shape[-2:])

    def _weight(self, shown: SampleReferences, like: Tensor, prompt: str) -> Tensor:
        if not self.outside_mask:
            return like.new_ones(1, *like.shape[-2:])
        if shown.mask is None:
            raise RewardError(
                f"reward {self.name!r} compares outside the mask, and the sample of prompt {prompt!r} has none; link "
                "masks in the data, or set `outside_mask` to false"
            )
        mask = shown.mask.to(like.device, like.dtype).unsqueeze(0)
        return 1 - interpolate(mask, size=tuple(like.shape[-2:]), mode="nearest-exact")[0]


def covering(image: Tensor, height: int, width: int) -> Tensor:
    """Return ``[3, height, width]``: the image ``[3, h, w]`` scaled to cover that, and cut at its centre."""
    if tuple(image.shape[-2:]) == (height, width):
        return image
    scale = max(height / image.shape[-2], width / image.shape[-1])
    size = [max(edge, round(scale * own)) for edge, own in zip((height, width), image.shape[-2:], strict=True)]
    scaled = interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, top : top + height, left : left + width]
