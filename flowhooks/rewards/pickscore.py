"""PickScore (arXiv 2305.01569): a CLIP-H that was tuned to say which of two pictures people prefer for a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.rewards.base import Records
from flowhooks.rewards.dual_encoder import DualEncoder
from flowhooks.rewards.models import ModelReward


class PickScore(ModelReward):
    """``exp(logit_scale) * cos(picture, prompt)``, with the model's own ``logit_scale``; about 20 for most pictures.

    The formula, and the processor of the CLIP-H that the model started from, are those of the model's page on the Hub,
    ``yuvalkirstain/PickScore_v1``.

    Args:
        model: a folder or a Hub id.
        processor: folder or Hub id of the preprocessor and the tokenizer; None for the model's own.
        dtype: of the model, ``fp32``, ``bf16`` or ``fp16``.
        max_frames: of a video.

    Raises:
        ModelError: the model cannot be used.
    """

    def __init__(
        self,
        *,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        dtype: str = "fp32",
        max_frames: int = 8,
        name: str = "pickscore",
    ):
        super().__init__(name=name, max_frames=max_frames)
        self._encoder = DualEncoder(model, processor or model, dtype)
        self.network = self._encoder.network
        if not hasattr(self.network, "logit_scale"):
            raise ModelError(f"`model` {model!r} has no `logit_scale`, which PickScore multiplies the cosine with")
        self._factor = float(self.network.logit_scale.detach().double().exp())
        self.range = (-self._factor, self._factor)

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        return self._factor * self._encoder.cosine(pictures, prompts)
