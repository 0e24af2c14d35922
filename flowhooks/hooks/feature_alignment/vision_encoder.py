"""A frozen vision model of transformers, as a teacher: images in, features of its patches out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, cached_file

from flowhooks.autocast import without_autocast
from flowhooks.errors import ModelError
from flowhooks.pretrained import REFUSALS, load_network, short
from flowhooks.reading import read_json


class VisionEncoder:
    """A frozen vision model, in no checkpoint. Code that comes with a model never runs, and only safetensors are read.

    Args:
        name: a folder or a Hub id.
        device: to compute on, in fp32.

    Raises:
        ModelError: it cannot be loaded, lacks weights, or gives no square grid of patches.
    """

    def __init__(self, name: str, device: torch.device):
        # A pooler comes after the features, and many files are saved without.
        network = load_network(AutoModel, name, "fp32", option="encoder", unused=("pooler",))
        processor = _how_to_look(name)
        settings = network.config.to_dict()
        if not isinstance(settings.get("patch_size"), int) or not isinstance(settings.get("hidden_size"), int):
            raise ModelError(
                f"`encoder` {name!r} is a {type(network).__name__}, whose config has no `patch_size` and "
                "`hidden_size`; give a vision transformer"
            )
        self.name, self.width = name, int(settings["hidden_size"])
        self._network = network.to(device)
        self._side = _side(processor, settings)
        self._patches = self._side // int(settings["patch_size"])
        self._mean, self._std = (
            torch.tensor(processor.get(key) or default, device=device).reshape(1, 3, 1, 1)
            for key, default in (("image_mean", IMAGENET_DEFAULT_MEAN), ("image_std", IMAGENET_DEFAULT_STD))
        )
        try:
            self(torch.zeros(1, 3, self._side, self._side, device=device))
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise ModelError(
                f"`encoder` {name!r} cannot see images of {self._side} pixels, the size it comes with: {short(error)}"
            ) from error

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self._patches, self._patches

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels ``[n, 3, H, W]`` in [-1, 1] -> features ``[n, P, D]`` of the last hidden state, without the tokens of
        class and registers, which come first. The whole image is resized to the model's own square."""
        pictures = ((pixels.float() + 1) / 2).clamp(0, 1)
        pictures = F.interpolate(pictures, size=(self._side, self._side), mode="bilinear", antialias=True)
        with without_autocast(pixels):
            states: Tensor = self._network(pixel_values=(pictures - self._mean) / self._std).last_hidden_state
        patches = self._patches**2
        if states.dim() != 3 or states.shape[1] < patches:
            raise ModelError(f"`encoder` {self.name!r} gives {tuple(states.shape)}, expected {patches} patches or more")
        return states[:, states.shape[1] - patches :]


def _how_to_look(name: str) -> dict[str, Any]:
    """Returns the contents of ``preprocessor_config.json``; empty where there is none."""
    try:
        return dict(BaseImageProcessor.get_image_processor_dict(name)[0]) if _says_how_to_look(name) else {}
    except REFUSALS as error:
        raise ModelError(
            f"the `preprocessor_config.json` of `encoder` {name!r} cannot be loaded: {short(error)}; correct it, or "
            "remove it to have the sizes of config.json"
        ) from error


def _says_how_to_look(name: str) -> bool:
    """Whether the model has a ``preprocessor_config.json``. Raises OSError where a download fails, which answers
    neither."""
    own, shared = (
        cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        for file in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME)
    )
    return own is not None or (shared is not None and "image_processor" in read_json(Path(shared)))


def _side(processor: dict[str, Any], settings: dict[str, Any]) -> int:
    """Pixels of the square that the model was made for: of its crop, else of its resizing, else of its config."""
    for size in (processor.get("crop_size"), processor.get("size"), settings.get("image_size")):
        for side in (size.get("height"), size.get("shortest_edge")) if isinstance(size, dict) else (size,):
            if isinstance(side, int):
                return side
    raise ModelError("neither preprocessor_config.json nor config.json of the `encoder` says how large its images are")
