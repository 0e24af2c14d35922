"""Keep the sizes at which a pipeline is used, and the layout at each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flowhooks.arguments import duration_argument
from flowhooks.errors import ModelError
from flowhooks.probe.calls import sized_by_image
from flowhooks.probe.layout import Layout
from flowhooks.probe.sound import Sound

FRAMES = ("num_frames", "frames")
#: Pixels to which some pipelines scale whatever size they are asked for.
AREA = "max_area"
#: Frames by which a video can be longer: a multiple of the frames that any autoencoder compresses together (4, 6, 8).
ALIKE = 24


class Size(NamedTuple):
    """Holds height and width in pixels, and frames of a video; None if the pipeline generates images only. A clip of
    sound has height 1, and is as wide as it has samples."""

    height: int
    width: int
    frames: int | None


def require_sizes(pipe: Any, references: Sequence[str] = ()) -> None:
    """Raise ModelError for a pipeline whose call has neither height and width nor a length in seconds, saying what it
    is; except where its size is that of an image, which is one of these references."""
    name, known = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    if {"height", "width"} <= known.keys() or duration_argument(known) is not None:
        return
    if sized_by_image(pipe):
        if references:
            return
        raise ModelError(
            f"{name} takes no `height` and `width`: its size is that of its image; name the argument of that image in "
            "`references`"
        )
    sound = [argument for argument in known if "audio" in argument or "waveform" in argument]
    if sound:
        raise ModelError(
            f"{name} makes sound: it takes `{sound[0]}`, and no length in seconds; flowhooks trains pipelines that "
            "make images or videos of a given size, or sound of a given length"
        )
    raise ModelError(
        f"{name} takes no `height` and `width`, so its size cannot be chosen; flowhooks trains pipelines that make "
        "images or videos of a given size"
    )


class Sizes:
    """Holds layouts by size.

    Args:
        pipe: the pipeline; the arguments of its call show whether it makes videos.
        arguments: arguments of every call of it.
        sound: what its clips are, for a pipeline of sound.
    """

    def __init__(self, pipe: Any, arguments: Mapping[str, Any], sound: Sound | None = None):
        known = inspect.signature(type(pipe).__call__).parameters
        self._pipeline = type(pipe).__name__
        self._sound = sound
        self._argument = next((name for name in FRAMES if name in known), None)
        self._area = AREA in known and AREA not in arguments
        self._frames: int | None = None
        if self._argument is not None:
            self._frames = arguments.get(self._argument, known[self._argument].default)
        self.layouts: dict[Size, Layout] = {}
        #: With references: those of each size and shape of the network's sample argument, with images and without,
        #: `layouts` among them.
        self.variants: dict[tuple[Size, tuple[int, ...], bool], Layout] = {}

    def of(self, height: int, width: int, frames: int | None = None) -> Size:
        """Return a size, with the pipeline's own number of frames where none is given. Raises ModelError for a video
        where it makes none."""
        if self._argument is None and frames not in (None, 1):
            makes = "images" if self._sound is None else "sound"
            raise ModelError(
                f"{self._pipeline} generates {makes}, not videos of {frames} frames; set `num_frames` to 1"
            )
        if (height == 1) != (self._sound is not None):
            found = "sound" if height == 1 else "images"
            raise ModelError(f"{self._pipeline} generates {'images' if self._sound is None else 'sound'}, not {found}")
        return Size(height, width, None if self._argument is None else frames or self._frames)

    @property
    def argument(self) -> str | None:
        """Return the pipeline argument for the number of frames."""
        return self._argument

    def arguments(self, size: Size) -> dict[str, Any]:
        """Return the size as arguments of the pipeline."""
        if self._sound is not None:
            return {self._sound.argument: self._sound.seconds(size.width)}
        arguments = {"height": size.height, "width": size.width}
        if self._argument is not None and size.frames is not None:
            arguments[self._argument] = size.frames
        if self._area:
            arguments[AREA] = size.height * size.width
        return arguments

    def others(self, size: Size) -> list[Size]:
        """Return other sizes to compare with, the likeliest first: twice or half as wide, for networks near the most
        positions they have, and a video longer or shorter by frames that any autoencoder compresses together."""
        widths = (2 * size.width, size.width // 2)
        if size.frames is None:
            return [Size(size.height, width, None) for width in widths]
        lengths = (size.frames + ALIKE, max(1, size.frames - ALIKE))
        return [Size(size.height, width, frames) for frames in lengths for width in widths if frames != size.frames]

    def size_of(self, layout: Layout) -> Size:
        """Return the size at which a layout was learned."""
        every = (*self.layouts.items(), *((size, known) for (size, *_), known in self.variants.items()))
        return next(size for size, known in every if known is layout)

    def layout_of(self, shape: tuple[int, ...], size: Size | None) -> Layout:
        """Return the layout of samples of a shape, at ``size`` if that is known.

        Raises:
            ModelError: none is known, or more than one.
        """
        fitting = [at for at in self.layouts if self.layouts[at].sample_shape == shape]
        if size in fitting:
            return self.layouts[size]
        if not fitting:
            raise ModelError(
                f"no layout is known for samples of shape {shape}; call `model.layout(height, width)` for their "
                "resolution first"
            )
        if len(fitting) > 1:
            named = ", ".join(f"{at.width}x{at.height}" + (f"x{at.frames}" if at.frames else "") for at in fitting)
            raise ModelError(
                f"samples of shape {shape} may be of {named}; say which with `Batch(size=(height, width, frames))`, or "
                "use `model.at(height, width)`"
            )
        return self.layouts[fitting[0]]
