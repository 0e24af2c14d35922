"""Repeat the steps of a stock image processor in torch, so that a gradient passes through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor

from flowhooks.errors import ModelError

#: Pillow's number of each filter.
_MODES = {2: "bilinear", 3: "bicubic"}
#: Largest difference from the stock processor, in units of [0, 1]. Pillow rounds to 8 bits after each of two passes.
TOLERANCE = 2 / 255


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resizes, crops in the middle, and normalises images.

    Args:
        size: (height, width), or the length of the shorter edge, or None to keep the image's own.
        mode: ``bilinear`` or ``bicubic``, both with antialiasing.
        crop: (height, width), or None.
        scale: factor of pixels in [0, 1] before they are normalised.
        mean: mean of each channel.
        std: standard deviation of each channel.
    """

    size: tuple[int, int] | int | None
    mode: str
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pictures: Tensor) -> Tensor:
        """Turn ``[N, 3, H, W]`` in [0, 1] into ``[N, 3, h, w]`` as the model takes it."""
        height, width = pictures.shape[-2:]
        target = _resized(height, width, self.size)
        # Columns, then rows, as Pillow does it.
        for size in ((height, target[1]), target):
            if size != tuple(pictures.shape[-2:]):
                sharp = F.interpolate(pictures, size=size, mode=self.mode, antialias=True)
                # Bicubic overshoots at edges, where Pillow clips. The value is clipped here too, the gradient is not:
                # paper that is white already would lose it.
                pictures = sharp + (sharp.clamp(0, 1) - sharp).detach()
        if self.crop is not None:
            pictures = _cropped(pictures, *self.crop)
        mean, std = (pictures.new_tensor(each).reshape(1, 3, 1, 1) for each in (self.mean, self.std))
        return (pictures * self.scale - mean) / std


def load_preprocessing(name: str, option: str) -> Preprocessing:
    """Load the steps of ``preprocessor_config.json``, and compare them with the stock processor on an image before they
    are used.

    Args:
        name: a folder or a Hub id.
        option: named in errors.

    Raises:
        ModelError: there is no such file, or its processor does more than these steps.
    """
    stock = load_stock(name, option)
    try:
        own = _read(stock)
        difference = _difference(stock, own)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(_unlike(name, option, stock, str(error))) from error
    if not difference <= TOLERANCE:
        raise ModelError(_unlike(name, option, stock, f"they differ by {difference:.3f} of the full range"))
    return own


def load_stock(name: str, option: str) -> Any:
    """Load the image processor of transformers, for Pillow and NumPy, without code that comes with a model."""
    try:
        return AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise ModelError(
            f"`{option}` {name!r} has no image processor that can be loaded: {' '.join(str(error).split())[:300]}; "
            "give a folder or a Hub id with a preprocessor_config.json"
        ) from error


def _read(stock: Any) -> Preprocessing:
    size, crop = None, None
    if stock.do_resize:
        size = _size(stock.size)
        mode = _MODES.get(int(stock.resample))
        if mode is None:
            raise ValueError(f"its filter is number {int(stock.resample)} of Pillow, not bilinear or bicubic")
    else:
        mode = "bicubic"
    fraction = getattr(stock, "crop_pct", None)
    if fraction is not None and isinstance(size, int):
        # ConvNeXt and ResNet: a margin is cut off small images, and large ones are squeezed into the square.
        size, crop = (int(size / fraction), (size, size)) if size < 384 else ((size, size), None)
    elif getattr(stock, "do_center_crop", False):
        crop = (int(stock.crop_size["height"]), int(stock.crop_size["width"]))
    normal = stock.do_normalize
    return Preprocessing(
        size=size,
        mode=mode,
        crop=crop,
        scale=255 * stock.rescale_factor if stock.do_rescale else 255.0,
        mean=_triple(stock.image_mean) if normal else (0.0,) * 3,
        std=_triple(stock.image_std) if normal else (1.0,) * 3,
    )


def _triple(value: Any) -> tuple[float, ...]:
    return (float(value),) * 3 if isinstance(value, (int, float)) else tuple(float(each) for each in value)


def _size(told: Any) -> tuple[int, int] | int:
    size = {key: value for key, value in dict(told).items() if value is not None}
    if set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    if set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    raise ValueError(f"its size is {size}")


def _resized(height: int, width: int, size: tuple[int, int] | int | None) -> tuple[int, int]:
    if size is None:
        return height, width
    if not isinstance(size, int):
        return size
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def _cropped(pictures: Tensor, height: int, width: int) -> Tensor:
    rows, columns = pictures.shape[-2:]
    if rows < height or columns < width:
        raise ValueError(f"a crop of {height} x {width} does not fit into {rows} x {columns} pixels")
    top, left = (rows - height) // 2, (columns - width) // 2
    return pictures[..., top : top + height, left : left + width]


@torch.no_grad()
def _difference(stock: Any, own: Preprocessing) -> float:
    """Return the largest difference on an image of soft waves and hard edges that is neither square nor of the target's
    size."""
    rows, columns = np.mgrid[0:53, 0:71]
    waves = [127.5 + 127.5 * np.sin(rows / (3 + i) + columns / (5 - i)) for i in range(3)]
    picture = np.stack(waves, axis=-1).round().astype(np.uint8)
    picture[15:35, 20:50] = (255, 0, 128)
    theirs = stock(images=[picture], return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    ours = own(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    if theirs.shape != ours.shape:
        raise ValueError(f"it gives {tuple(theirs.shape)}, and these steps {tuple(ours.shape)}")
    return float(((ours - theirs).abs() * ours.new_tensor(own.std).reshape(1, 3, 1, 1)).max() / own.scale)


def _unlike(name: str, option: str, stock: Any, reason: str) -> str:
    return (
        f"`{option}` {name!r} prepares its images with {type(stock).__name__}, which does more than to resize, crop "
        f"and normalise: {reason}; take another model, or write a reward of your own around this one"
    )
