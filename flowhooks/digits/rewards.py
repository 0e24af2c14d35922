"""Score the embedded digits by their boldness, and by whether the judge can read them.

A run names these rewards by import path: ``flowhooks.digits.rewards:Ink`` and ``flowhooks.digits.rewards:Legibility``.
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
    """Returns the mean darkness in [0, 1]: 0 for white paper, more for bolder strokes, 1 for black.

    Args:
        max_frames: largest number of frames of a video to judge.
    """

    range = (0.0, 1.0)

    def __init__(self, *, max_frames: int = 8, name: str = "ink"):
        super().__init__(name=name, max_frames=max_frames)

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        return 1 - pictures.mean((1, 2, 3))


class Legibility(PictureReward):
    """Returns the log-probability, at most 0, of the digit in the prompt, under the embedded judge. The judge has not
    seen images of any model, and is trained first, in a minute or so, if it does not exist.

    Args:
        temperature: > 0; the judge's logits are divided by it. The judge is sure of most images, so that at 1 they
            differ by almost nothing; at 4 they still differ.
        max_frames: largest number of frames of a video to judge.
        judge: another judge than the embedded one.

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
        # A copy, so that a judge that also measures stays on its device.
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
                f"reward {self.name!r} knows prompts such as {caption(7)!r}; {unknown[0]!r} names no digit"
            )
        asked = torch.tensor([_DIGITS[prompt] for prompt in prompts], device=pictures.device)
        logits: Tensor = self.network(pictures * 2 - 1)[0] / self.temperature
        return logits.log_softmax(1).gather(1, asked[:, None])[:, 0]
