"""A frozen vision model of transformers, as a teacher: pictures in, features of its patches out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from flowhooks.errors import ModelError


class VisionEncoder:
    """Not trained, in no checkpoint. Code that comes with a model is never run, and only safetensors are read.

    Args:
        name: a folder or a Hub id.
        device: to compute on, in fp32.

    Raises:
        ModelError: it cannot be loaded, or gives no square grid of patches.
    """

    def __init__(self, name: str, device: torch.device):
        try:
            network = AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            raise ModelError(
                f"`encoder` {name!r} cannot be loaded: {' '.join(str(error).split())[:300]}; give a folder or a Hub id "
                "of a vision model of transformers with safetensors weights"
            ) from error
        settings = network.config.to_dict()
        if not isinstance(settings.get("patch_size"), int) or not isinstance(settings.get("hidden_size"), int):
            raise ModelError(
                f"`encoder` {name!r} is a {type(network).__name__}, whose config has no `patch_size` and "
                "`hidden_size`; give a vision transformer"
            )
        self.name, self.width = name, int(settings["hidden_size"])
        self._network = network.float().eval().requires_grad_(False).to(device)
        told = _processing(name)
        self._side = _side(told, settings)
        self._patches = self._side // int(settings["patch_size"])
        self._mean, self._std = (
            torch.tensor(told.get(key, default), device=device).reshape(1, 3, 1, 1)
            for key, default in (("image_mean", IMAGENET_DEFAULT_MEAN), ("image_std", IMAGENET_DEFAULT_STD))
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self._patches, self._patches

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels ``[n, 3, H, W]`` in [-1, 1] -> features ``[n, P, D]`` of the last hidden state, without the tokens of
        class and registers, which come first. The whole picture is resized to the model's own square."""
        pictures = ((pixels.float() + 1) / 2).clamp(0, 1)
        pictures = F.interpolate(pictures, size=(self._side, self._side), mode="bilinear", antialias=True)
        with torch.autocast(pixels.device.type, enabled=False):
            states: Tensor = self._network(pixel_values=(pictures - self._mean) / self._std).last_hidden_state
        patches = self._patches**2
        if states.dim() != 3 or states.shape[1] < patches:
            raise ModelError(f"`encoder` {self.name!r} gives {tuple(states.shape)}, expected {patches} patches or more")
        return states[:, states.shape[1] - patches :]


def _processing(name: str) -> dict[str, Any]:
    """What ``preprocessor_config.json`` says; nothing where there is none."""
    try:
        told, _ = BaseImageProcessor.get_image_processor_dict(name)
    except OSError:
        return {}
    return dict(told)


def _side(told: dict[str, Any], settings: dict[str, Any]) -> int:
    """Pixels of the square that the model was made for: of its crop, else of its resizing, else of its config."""
    for size in (told.get("crop_size"), told.get("size"), settings.get("image_size")):
        for side in (size.get("height"), size.get("shortest_edge")) if isinstance(size, dict) else (size,):
            if isinstance(side, int):
                return side
    raise ModelError(
        "neither preprocessor_config.json nor config.json of the `encoder` says how large its pictures are"
    )
