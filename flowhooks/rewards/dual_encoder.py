"""Score images with models that embed images and text in one space: CLIP, SigLIP and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel

from flowhooks.errors import ModelError
from flowhooks.pretrained import load_network, load_tokenizer
from flowhooks.rewards.base import ModelReward, Records
from flowhooks.rewards.pictures import load_preprocessing
from flowhooks.rewards.registry import ClipScoreSpec, PickScoreSpec
from flowhooks.transfer import picked, sent


class ClipScore(ClipScoreSpec, ModelReward):
    """Returns ``scale * cos(picture, prompt)`` in [-scale, scale].

    The paper's CLIPScore is ``2.5 * max(cos, 0)``. The maximum is left out: below 0 it has no gradient.

    Raises:
        ModelError: the model cannot be used.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.range = (-self.scale, self.scale)
        self._encoder = DualEncoder(self.model, self.model, self.dtype)
        self.network = self._encoder.network

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        return self.scale * self._encoder.cosine(pictures, prompts)


class DualEncoder:
    """Computes embeddings of images and of prompts, scaled to length 1.

    Args:
        model: a folder or a Hub id.
        processor: folder or Hub id of the preprocessor and the tokenizer.
        dtype: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        ModelError: something cannot be loaded, or the model has no embeddings of images and text.
    """

    def __init__(self, model: str, processor: str, dtype: str):
        option = "model" if processor == model else "processor"
        self.prepare = load_preprocessing(processor, option)
        self.tokenizer = load_tokenizer(processor, option)
        self.network = load_network(AutoModel, model, dtype)
        text = getattr(self.network.config, "text_config", None)
        if text is None or not all(hasattr(self.network, f"get_{kind}_features") for kind in ("image", "text")):
            raise ModelError(
                f"`model` {model!r} is a {type(self.network).__name__}, which has no features of images and of text "
                "in one space; give a CLIP or a SigLIP"
            )
        self._longest = int(text.max_position_embeddings)
        # SigLIP was trained on text padded to its full length, CLIP does not see the padding.
        self._padding: Any = "max_length" if self.network.config.model_type.startswith("siglip") else "longest"

    def pictures(self, pictures: Tensor) -> Tensor:
        """Return embeddings ``[N, D]`` of images ``[N, 3, H, W]`` in [0, 1], with gradient."""
        prepared = self.prepare(pictures).to(self.network.dtype)
        return directions(self.network.get_image_features(pixel_values=prepared).pooler_output)

    @torch.no_grad()
    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings ``[N, D]`` of prompts; each text is encoded once, truncated to the model's length."""
        once = list(dict.fromkeys(prompts))
        tokens = self.tokenizer(
            once, padding=self._padding, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        tokens = {name: sent(each, self.network.device) for name, each in tokens.items()}
        found = directions(self.network.get_text_features(**tokens).pooler_output)
        return picked(found, [once.index(prompt) for prompt in prompts])

    def cosine(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosine ``[N]`` in [-1, 1] of each image and its prompt."""
        return (self.pictures(pictures) * self.prompts(prompts)).sum(1)


def directions(features: Tensor) -> Tensor:
    """Scale features to length 1, in fp32 or better, so that a cosine stays in its range."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


class PickScore(PickScoreSpec, ModelReward):
    """Returns ``exp(logit_scale) * cos(picture, prompt)``, with the model's own ``logit_scale``; about 20 for most
    images.

    The formula, and the processor of the CLIP-H that the model started from, come from the model's page on the Hub,
    ``yuvalkirstain/PickScore_v1``.

    Raises:
        ModelError: the model cannot be used.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._encoder = DualEncoder(self.model, self.processor or self.model, self.dtype)
        self.network = self._encoder.network
        if not hasattr(self.network, "logit_scale"):
            raise ModelError(f"`model` {self.model!r} has no `logit_scale`, which PickScore multiplies the cosine with")
        scale = self.network.logit_scale.detach()
        # One without a number is counted, never computed with.
        self._factor = 1.0 if scale.is_meta else float(scale.double().exp())
        self.range = (-self._factor, self._factor)

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        return self._factor * self._encoder.cosine(pictures, prompts)
