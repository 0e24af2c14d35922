"""Score whether an image shows the text of its prompt, by reading it, for example with TrOCR (arXiv 2109.10282)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import VisionEncoderDecoderModel

from flowhooks.errors import RewardError
from flowhooks.pretrained import load_network, load_tokenizer
from flowhooks.rewards.base import ModelReward, Records, column
from flowhooks.rewards.pictures import load_stock
from flowhooks.rewards.registry import TextAccuracySpec


def edit_distance(one: str, other: str) -> int:
    """Return the number of characters to insert, delete or replace to turn one text into the other (Levenshtein)."""
    above = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        row = [i]
        for j, right in enumerate(other, start=1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (left != right)))
        above = row
    return above[-1]


def text_accuracy(read: str, wanted: str) -> float:
    """Return 1 for the same text and 0 when no character is in place: 1 - distance / length of the longer one."""
    longer = max(len(read), len(wanted))
    return 1 - edit_distance(read, wanted) / longer if longer else 1.0


class TextAccuracy(TextAccuracySpec, ModelReward):
    """Returns the accuracy in [0, 1] of the text that a model reads in the whole image. Choosing characters has no
    gradient.

    Raises:
        ModelError: the model cannot be used.
    """

    range = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._processor = load_stock(self.model, "model")
        self._tokenizer = load_tokenizer(self.model)
        # The text is read from the patches; the released TrOCR models lack this layer of their ViT.
        self.network = load_network(VisionEncoderDecoderModel, self.model, self.dtype, unused=("encoder.pooler.",))

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        wanted = [self._plain(str(text)) for text in column(records, self.text_column, self.name, prompts)]
        if not all(wanted):
            at = wanted.index("")
            raise RewardError(
                f"reward {self.name!r}: the column {self.text_column!r} of prompt {prompts[at]!r} holds no text to read"
            )
        found = [text_accuracy(self._plain(read), text) for read, text in zip(self.read(pictures), wanted, strict=True)]
        return torch.tensor(found, dtype=torch.float32, device=pictures.device)

    @torch.no_grad()
    def read(self, pictures: Tensor) -> list[str]:
        """Return the text in each of the images ``[N, 3, H, W]`` in [0, 1]."""
        images = (pictures * 255).round().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        pixels = self._processor(
            images=list(images), return_tensors="pt", input_data_format="channels_last"
        ).pixel_values
        ids = self.network.generate(
            pixels.to(self.network.device, self.network_dtype), do_sample=False, max_new_tokens=self.max_new_tokens
        )
        return [text.strip() for text in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _plain(self, text: str) -> str:
        text = "".join(text.split()) if self.ignore_spaces else " ".join(text.split())
        return text.casefold() if self.ignore_case else text
