"""How well a picture fits its prompt, by the cosine of CLIP (arXiv 2104.08718) or SigLIP (arXiv 2303.15343)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowhooks.rewards.base import Records
from flowhooks.rewards.dual_encoder import DualEncoder
from flowhooks.rewards.models import ModelReward


class ClipScore(ModelReward):
    """``scale * cos(picture, prompt)`` in [-scale, scale].

    The paper's CLIPScore is ``2.5 * max(cos, 0)``. The maximum is left out: below 0 it has no gradient.

    Args:
        model: a folder or a Hub id of a CLIP or a SigLIP.
        scale: above 0; 1 for the cosine, 2.5 as in the paper, 100 for percent.
        dtype: of the model, ``fp32``, ``bf16`` or ``fp16``.
        max_frames: of a video.

    Raises:
        ModelError: the model cannot be used.
    """

    def __init__(
        self, *, model: str, scale: float = 1.0, dtype: str = "fp32", max_frames: int = 8, name: str = "clip_score"
    ):
        super().__init__(name=name, max_frames=max_frames)
        if scale <= 0:
            raise ValueError(f"`scale` must be above 0, got {scale}")
        self.scale, self.range = scale, (-scale, scale)
        self._encoder = DualEncoder(model, model, dtype)
        self.network = self._encoder.network

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        return self.scale * self._encoder.cosine(pictures, prompts)
