"""The three kinds of cache entries: what each depends on, and how it is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from flowhooks.data.geometry import Geometry
from flowhooks.data.inspection import BadImage, Picture
from flowhooks.data.store import is_finite
from flowhooks.data.transform import load_mask, load_pixels
from flowhooks.errors import Problem

if TYPE_CHECKING:
    from flowhooks.probe import FlowModel

# Raised whenever the arithmetic of a kind changes, so that entries of an older release are left alone.
FORMAT = 2
REMEDY = "if `model.dtype` is fp16, set it to bf16 or fp32; otherwise the model's weights are damaged"
Cut = tuple[Picture, Geometry]


class Encoder(Protocol):
    """One kind of entries.

    Attributes:
        kind: folder in the cache.
        title: of the progress bar.
        problems: what could not be encoded, so far.
    """

    kind: str
    title: str
    problems: list[Problem]

    def about(self, item: Any) -> dict[str, Any]:
        """Everything that the tensors of `item` depend on, as JSON."""
        ...

    def encode(self, items: Sequence[Any]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """The tensors of every item that can be encoded; a problem for every other."""
        ...


class Pictures:
    """Preferred and rejected images -> `latents`, float32, one sample in the scheduler's sample space."""

    kind = "latents"
    title = "Encoding images"

    def __init__(self, model: FlowModel):
        self.model = model
        self.problems: list[Problem] = []
        self._made_by = _identity(model)

    def about(self, item: Cut) -> dict[str, Any]:
        picture, geometry = item
        return {"format": FORMAT, "file": picture.digest, "geometry": asdict(geometry), **self._made_by}

    def encode(self, items: Sequence[Cut]) -> Iterator[tuple[Cut, dict[str, Tensor]]]:
        decoded = {}
        for item in items:
            pixels = _decode(item[0], self.problems, partial(load_pixels, geometry=item[1]))
            if pixels is not None:
                decoded[item] = pixels
        if not decoded:
            return
        batch = torch.from_numpy(np.stack(list(decoded.values()))).to(self.model.device)
        with torch.no_grad():
            encoded = self.model.encode_images(batch).float().cpu()
        for item, latents in zip(decoded, encoded, strict=True):
            if is_finite(latents):
                yield item, {"latents": latents}
            else:
                self.problems.append(
                    Problem(f"the VAE turns this image into NaN or infinity; {REMEDY}", item[0].asset.name)
                )


class Masks:
    """Masks -> `mask`, float32 `[1, h, w]` on the VAE's latent grid.

    Args:
        grids: (height, width) in pixels -> (h, w) of the grid.
    """

    kind = "masks"
    title = "Shrinking masks"

    def __init__(self, grids: dict[tuple[int, int], tuple[int, int]]):
        self.grids = grids
        self.problems: list[Problem] = []

    def about(self, item: Cut) -> dict[str, Any]:
        picture, geometry = item
        return {
            "format": FORMAT,
            "file": picture.digest,
            "geometry": asdict(geometry),
            "grid": list(self.grids[geometry.height, geometry.width]),
        }

    def encode(self, items: Sequence[Cut]) -> Iterator[tuple[Cut, dict[str, Tensor]]]:
        for item in items:
            picture, geometry = item
            height, width = self.grids[geometry.height, geometry.width]
            read = partial(load_mask, geometry=geometry, height=height, width=width)
            mask = _decode(picture, self.problems, read)
            if mask is not None:
                yield item, {"mask": torch.from_numpy(mask)}


class Captions:
    """Captions -> the tensors of their condition."""

    kind = "text"
    title = "Encoding captions"

    def __init__(self, model: FlowModel, size: tuple[int, int]):
        self.model = model
        self.size = dict(zip(("height", "width"), size, strict=True))
        self.problems: list[Problem] = []
        # Where arguments follow prompt and resolution both, a caption is another one at another size.
        self._made_by = {**_identity(model), **(self.size if model.contract.joint else {})}

    def about(self, item: str) -> dict[str, Any]:
        return {"format": FORMAT, "caption": item, **self._made_by}

    def encode(self, items: Sequence[str]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        with torch.no_grad():
            conditions = self.model.encode_prompts(list(items), **self.size)
        for i, caption in enumerate(items):
            tensors = conditions[i : i + 1].to("cpu").flatten()
            if all(map(is_finite, tensors.values())):
                yield caption, tensors
            else:
                what = f"the text encoders turn the caption {caption!r} into NaN or infinity"
                self.problems.append(Problem(f"{what}; {REMEDY}"))


def _identity(model: FlowModel) -> dict[str, str]:
    return {"model": model.fingerprint, "dtype": str(model.dtype)}


def _decode(picture: Picture, problems: list[Problem], read: Callable[[bytes], np.ndarray]) -> np.ndarray | None:
    try:
        data = picture.asset.read()
        if hashlib.sha256(data).hexdigest() != picture.digest:
            raise BadImage("changed while the run was starting; start again")
        return read(data)
    except BadImage as error:
        problems.append(Problem(str(error), picture.asset.name))
    except OSError as error:
        problems.append(Problem(f"cannot be read ({error.strerror})", picture.asset.name))
    return None
