"""Predict how much people like an image, whatever it shows, with LAION's improved aesthetic predictor."""

from __future__ import annotations

import re
from collections.abc import Sequence

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from flowhooks.errors import ModelError
from flowhooks.pretrained import DTYPES, frozen, load_network
from flowhooks.rewards.base import ModelReward, Records
from flowhooks.rewards.dual_encoder import directions
from flowhooks.rewards.pictures import load_preprocessing
from flowhooks.rewards.registry import AestheticSpec

_KEY = re.compile(r"^layers\.(\d+)\.(weight|bias)$")


class Aesthetic(AestheticSpec, ModelReward):
    """Applies a head of linear layers to CLIP's image embedding of length 1; trained on ratings from 1 to 10, and
    unbounded.

    The released head (github.com/christophschuhmann/improved-aesthetic-predictor) has the widths 768, 1024, 128, 64, 16
    and 1 with nothing but dropout between, and goes with CLIP ViT-L/14. Here the widths are read from its file.

    Raises:
        ModelError: the model or the head cannot be used, or they do not go together.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = read_head(self.head)
        self._prepare = load_preprocessing(self.model, "model")
        vision = load_network(CLIPVisionModelWithProjection, self.model, self.dtype)
        width = vision.config.projection_dim
        if layers[0].in_features != width:
            raise ModelError(
                f"`head` {self.head!r} takes {layers[0].in_features} numbers, and `model` {self.model!r} gives "
                f"{width}; the released head goes with openai/clip-vit-large-patch14"
            )
        head_network = nn.Sequential(*layers).to(DTYPES[self.dtype])
        self.network = frozen(nn.ModuleDict({"vision": vision, "head": head_network}))

    def score(self, pictures: Tensor, prompts: Sequence[str], records: Records) -> Tensor:
        prepared = self._prepare(pictures)
        embedding = directions(self.network["vision"](pixel_values=prepared.to(self.network_dtype)).image_embeds)
        return self.network["head"](embedding.to(self.network_dtype))[:, 0].to(embedding.dtype)


def read_head(file: str) -> list[nn.Linear]:
    """Return the linear layers of a safetensors file, in order.

    Raises:
        ModelError: the file cannot be read, or holds anything else.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(
            f"`head` {file!r} cannot be read: {error}; give a safetensors file, to which docs/rewards.md shows how to "
            "bring the released .pth"
        ) from error
    strange = [key for key in tensors if not _KEY.match(key)]
    if strange or not tensors:
        found = repr(strange[0]) if strange else "nothing"
        raise ModelError(f"`head` {file!r} holds {found}, expected only `layers.<i>.weight` and `layers.<i>.bias`")
    layers: list[nn.Linear] = []
    for number in sorted({int(key.split(".")[1]) for key in tensors}):
        weight, bias = (tensors.get(f"layers.{number}.{part}") for part in ("weight", "bias"))
        if weight is None or bias is None or weight.dim() != 2 or bias.shape != weight.shape[:1]:
            raise ModelError(f"`head` {file!r}: layer {number} is not a weight [out, in] with a bias [out]")
        if layers and layers[-1].out_features != weight.shape[1]:
            raise ModelError(
                f"`head` {file!r}: layer {number} takes {weight.shape[1]} numbers, and the one before it gives "
                f"{layers[-1].out_features}"
            )
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    if layers[-1].out_features != 1:
        raise ModelError(f"`head` {file!r} ends in {layers[-1].out_features} numbers, expected 1")
    return layers
