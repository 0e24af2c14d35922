"""Define the kinds of cache entries that data needs: what each depends on, and how it is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from flowhooks.data.geometry import Geometry
from flowhooks.data.images import BadImage
from flowhooks.data.inspection import Picture
from flowhooks.data.store import is_finite
from flowhooks.data.transform import load_clip, load_mask, load_pixels
from flowhooks.data.waveforms import load_waveform
from flowhooks.errors import Problem

if TYPE_CHECKING:
    from flowhooks.probe import FlowModel

# Increased whenever the arithmetic of a kind changes, so that entries of an older release are not used.
FORMAT = 2
# Increased whenever the conversion of colours to sRGB changes.
COLORS = 1
# Increased whenever the encoding of a text changes.
TEXT_FORMAT = 1
REMEDY = "if `model.dtype` is fp16, set it to bf16 or fp32; otherwise the model's weights are damaged"
Cut = tuple[Picture, Geometry]
Size = tuple[int, int, int]
Told = tuple[str, Size | None]


class Encoder(Protocol):
    """Computes one kind of entries.

    Attributes:
        kind: folder in the cache.
        title: title of the progress bar.
    """

    kind: str
    title: str

    @property
    def problems(self) -> list[Problem]:
        """Return the problems with items that could not be encoded so far."""
        ...

    def about(self, item: Any) -> dict[str, Any]:
        """Return everything that the tensors of `item` depend on, as JSON."""
        ...

    def encode(self, items: Sequence[Any]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Yield the tensors of every item that can be encoded; record a problem for every other."""
        ...


class Pictures:
    """Encodes preferred and rejected images to `latents`, float32, one sample in the scheduler's sample space."""

    kind = "latents"
    title = "Encoding images"

    def __init__(self, model: FlowModel):
        self.model = model
        self.problems: list[Problem] = []
        self._made_by = made_by(model)

    def about(self, item: Cut) -> dict[str, Any]:
        picture, geometry = item
        # Only where it has a value, so that cached entries of other images stay valid.
        colours: dict[str, Any] = {"colors": COLORS} if picture.profiled else {}
        if picture.sound is not None:
            colours = {"sound": [picture.sound.rate, picture.sound.channels]}
        return {"format": FORMAT, "file": picture.digest, "geometry": asdict(geometry), **colours, **self._made_by}

    def encode(self, items: Sequence[Cut]) -> Iterator[tuple[Cut, dict[str, Tensor]]]:
        pixels_of = {}
        for item in items:
            pixels = decoded(item[0], self.problems, _reader(*item))
            if pixels is not None:
                pixels_of[item] = pixels
        for size in dict.fromkeys(geometry.size for _, geometry in pixels_of):
            alike = [item for item in pixels_of if item[1].size == size]
            for item, latents in zip(alike, self._encoded([pixels_of[item] for item in alike], size), strict=True):
                if is_finite(latents):
                    yield item, {"latents": latents}
                else:
                    self.problems.append(
                        Problem(f"the VAE turns this image into NaN or infinity; {REMEDY}", item[0].asset.name)
                    )

    @torch.no_grad()
    def _encoded(self, pixels: list[np.ndarray], size: Size) -> Tensor:
        batch = torch.from_numpy(np.stack(pixels)).to(self.model.device)
        return self.model.at(*size).encode_images(batch).float().cpu()


def _reader(picture: Picture, geometry: Geometry) -> Callable[[bytes], np.ndarray]:
    """Return what turns the bytes of an image, a video or sound into what the VAE takes."""
    if picture.sound is not None:
        return partial(load_waveform, wave=picture.sound, geometry=geometry)
    return partial(load_clip if geometry.shown else load_pixels, geometry=geometry)


class Masks:
    """Turns masks into `mask`, float32 `[1, h, w]` on the VAE's latent grid, or `[1, t]` of sound, whose masks have
    time from left to right.

    Args:
        grids: height, width and frames of a sample -> (h, w) of the grid, or (t,).
    """

    kind = "masks"
    title = "Shrinking masks"

    def __init__(self, grids: Mapping[Size, tuple[int, ...]]):
        self.grids = grids
        self.problems: list[Problem] = []

    def about(self, item: Cut) -> dict[str, Any]:
        picture, geometry = item
        return {
            "format": FORMAT,
            "file": picture.digest,
            "geometry": asdict(geometry),
            "grid": list(self.grids[geometry.size]),
            **({"values": "labels"} if picture.labels else {}),
        }

    def encode(self, items: Sequence[Cut]) -> Iterator[tuple[Cut, dict[str, Tensor]]]:
        for item in items:
            picture, geometry = item
            grid = self.grids[geometry.size]
            height, width = (1, *grid)[-2:]
            read = partial(load_mask, geometry=geometry, height=height, width=width, labels=picture.labels)
            mask = decoded(picture, self.problems, read)
            if mask is not None:
                yield item, {"mask": torch.from_numpy(mask).reshape(1, *grid)}


def caption_key(model: FlowModel, caption: str, size: Size) -> Told:
    """Return the key of a caption for samples of this size: where arguments depend on prompt and resolution together,
    each size has its own."""
    return caption, size if model.contract.joint else None


class CaptionEncoder:
    """Encodes captions, each with the size it is used at, to the tensors of their condition."""

    kind = "text"
    title = "Encoding captions"

    def __init__(self, model: FlowModel):
        self.model = model
        self.problems: list[Problem] = []
        self._made_by = made_by(model)

    def about(self, item: Told) -> dict[str, Any]:
        caption, size = item
        at = {} if size is None else {"size": list(size)}
        return {"format": FORMAT, "texts": TEXT_FORMAT, "caption": caption, **at, **self._made_by}

    def encode(self, items: Sequence[Told]) -> Iterator[tuple[Told, dict[str, Tensor]]]:
        for size in dict.fromkeys(size for _, size in items):
            model = self.model if size is None else self.model.at(*size)
            alike = [item for item in items if item[1] == size]
            with torch.no_grad():
                conditions = model.encode_prompts([caption for caption, _ in alike])
            for i, item in enumerate(alike):
                tensors = conditions[i : i + 1].to("cpu").flatten()
                if all(map(is_finite, tensors.values())):
                    yield item, tensors
                else:
                    what = f"the text encoders turn the caption {item[0]!r} into NaN or infinity"
                    self.problems.append(Problem(f"{what}; {REMEDY}"))


def made_by(model: FlowModel) -> dict[str, str]:
    """Return what latents and embeddings depend on beside their item, as JSON."""
    return {"model": model.fingerprint, "dtype": str(model.dtype)}


T = TypeVar("T")


def decoded(picture: Picture, problems: list[Problem], read: Callable[[bytes], T]) -> T | None:
    """Return what ``read`` makes of an image's bytes; None where it cannot, which is a problem."""
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
