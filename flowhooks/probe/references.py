"""Find the arguments in which a pipeline takes images of a sample's own, and make examples of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import interpolate

from flowhooks.arguments import OWN_TEXTS, takes_images, takes_own
from flowhooks.errors import ModelError

#: Smallest edge of an image that pipelines take.
SMALLEST = 64


def picture_arguments(pipe: Any) -> list[str]:
    """Return the arguments of the pipeline's call that take images; those without a default come first."""
    known = inspect.signature(type(pipe).__call__).parameters.values()
    named = [each for each in known if takes_images(each.name)]
    return [each.name for each in sorted(named, key=lambda each: each.default is not inspect.Parameter.empty)]


def own_arguments(pipe: Any) -> list[str]:
    """Return the arguments of the pipeline's call that take images or texts of each sample's own."""
    known = inspect.signature(type(pipe).__call__).parameters
    return [*picture_arguments(pipe), *(name for name in known if name in OWN_TEXTS and takes_own(name))]


def picture_argument(pipe: Any) -> str:
    """Return the argument that references are passed as where none is named: the only one that the pipeline needs, or
    else the only one that it takes.

    Raises:
        ModelError: there is none, or more than one.
    """
    name, known = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    found = picture_arguments(pipe)
    needed = [each for each in found if known[each].default is inspect.Parameter.empty]
    if len(needed) == 1 or len(found) == 1:
        return (needed or found)[0]
    if not found:
        raise ModelError(f"{name} takes no image, so it has no use for references; use a pipeline that edits images")
    each = ", ".join(f"`{argument}`" for argument in found)
    shown = ", ".join(f'"{argument}": ...' for argument in found[:2])
    raise ModelError(f"{name} takes images in {each}; say which references are for which, as {{{shown}}}")


def examples(names: Sequence[str], height: int, width: int) -> tuple[Mapping[str, Any], ...]:
    """Return the images of three samples, by argument: two of this size in pixels, or of :data:`SMALLEST`, and between
    them one of another content and shape; and the texts of three."""
    if not names:
        return ()
    height, width = max(height, SMALLEST), max(width, SMALLEST)
    return tuple(
        {name: _text(name, k) or smooth(wide, height, seed=10 * k + i) for i, name in enumerate(names)}
        for k, wide in enumerate((width, 2 * width, width))
    )


def turned(names: Sequence[str], height: int, width: int) -> tuple[Mapping[str, Any], ...]:
    """Return the images of two samples, by argument: of one number of pixels, one tall and one wide."""
    edge = max(height, width, SMALLEST)
    sizes = ((edge, 2 * edge), (2 * edge, edge))
    return tuple(
        {name: _text(name, 2 + k) or smooth(*size, seed=i) for i, name in enumerate(names)}
        for k, size in enumerate(sizes)
    )


def _text(name: str, k: int) -> str | int | None:
    """Return the text of a sample, or the number that some pipelines take in its place; None for an argument of
    images."""
    if name not in OWN_TEXTS:
        return None
    return (60, 120, 90, 75)[k] if name == "bpm" else ("one", "two three one", "seven", "eight")[k]


def smooth(width: int, height: int, seed: int) -> Image.Image:
    """Return a random image of this size without edges."""
    few = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = interpolate(few, (height, width), mode="bilinear")[0]
    return Image.fromarray((255 * large).round().byte().permute(1, 2, 0).numpy())


def as_argument(images: Sequence[Any]) -> Any:
    """Return images of one argument as a pipeline takes them: one by itself, several as a list."""
    return images[0] if len(images) == 1 else list(images)
