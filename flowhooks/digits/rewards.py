"""Rewards for the embedded digits: how bold they are written, and whether the judge can read them.

Named in a run by import path: ``flowhooks.digits.rewards:Ink`` and ``flowhooks.digits.rewards:Legibility``.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Self

import torch
from torch import Tensor

from flowhooks.digits.judge import Judge, ensure_judge
from flowhooks.digits.scans import PIXELS, WORDS, caption
from flowhooks.errors import RewardError
from flowhooks.rewards.base import PictureReward, Records

_DIGITS = {caption(digit): digit for digit in range(len(WORDS))}


class Ink(PictureReward):
    """Mean darkness in [0, 1]: 0 for white paper, more for bolder strokes, 1 for black.

    Args:
        max_frames: of a video.
    """

    range = (0.0, 1.0)

    def __init__(self, *, max_frames: int = 8, name: str = "ink"):
        super().__init__(name=name, max_frames=max_frames)

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        return 1 - pictures.mean((1, 2, 3))


class Legibility(PictureReward):
    """Log-probability, at most 0, of the digit that the prompt asks for, under the embedded judge. It has not seen the
    images of any model, and is trained first, in a minute or so, where it is not there.

    Args:
        temperature: > 0; the judge's logits are divided by it. It is sure of most images, and at 1 such images
            differ by next to nothing; at 4 they can still be told apart.
        max_frames: of a video.
        judge: another one than the embedded.

    Raises:
        ValueError: a temperature out of range.
    """

    range = (None, 0.0)

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        max_frames: int = 8,
        name: str = "legibility",
        judge: Judge | None = None,
    ):
        if temperature <= 0:
            raise ValueError(f"`temperature` must be above 0, got {temperature}")
        super().__init__(name=name, max_frames=max_frames)
        self.temperature = temperature
        # A copy, so that a judge that also measures stays where it is.
        self.network = deepcopy((judge or ensure_judge()).network).eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        if pictures.shape[-2:] != (PIXELS, PIXELS):
            found = " x ".join(str(side) for side in pictures.shape[-2:])
            raise RewardError(f"reward {self.name!r} judges images of {PIXELS} x {PIXELS} pixels, got {found}")
        unknown = [prompt for prompt in prompts if prompt not in _DIGITS]
        if unknown:
            raise RewardError(
                f"reward {self.name!r} knows prompts such as {caption(7)!r}; {unknown[0]!r} asks for no digit"
            )
        asked = torch.tensor([_DIGITS[prompt] for prompt in prompts], device=pictures.device)
        logits: Tensor = self.network(pictures * 2 - 1)[0] / self.temperature
        return logits.log_softmax(1).gather(1, asked[:, None])[:, 0]
