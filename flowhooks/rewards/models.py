"""What rewards that compute with a model have in common."""

from __future__ import annotations

from typing import Any, Self

import torch

from flowhooks.rewards.base import PictureReward


class ModelReward(PictureReward):
    """A reward that computes with a ``network``."""

    network: Any

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in. Pictures are prepared, and results given, in fp32 or better."""
        return next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
