"""Describe the failure of a pipeline that is probed: in which component, on what input, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from flowhooks.errors import FlowhooksError, ModelError

#: Largest number of characters of a pipeline's own message, and of one argument, in our message.
MESSAGE, ARGUMENT = 300, 60
REMEDY = "give a `height`, `width`, number of frames and `arguments` that the pipeline itself runs with"


class PipelineFailed(ModelError):
    """The pipeline itself stopped with an exception.

    Args:
        message: the complete message.
        reason: the exception's own message, shortened.
        place: the component that raised it, and the type of the exception.
    """

    def __init__(self, message: str, *, reason: str, place: str):
        super().__init__(message)
        self.reason, self.place = reason, place


@contextmanager
def named_failures(pipe: Any) -> Iterator[None]:
    """Raise exceptions in the block that are not ours as :class:`PipelineFailed`, with the component they came from."""
    try:
        yield
    except FlowhooksError:
        raise
    except Exception as error:
        raise failed(pipe, error) from error


@contextmanager
def counted_images(pipe: Any, images: Mapping[str, Any]) -> Iterator[None]:
    """Name the number of a sample's images as the likely cause where the pipeline fails in the block and one of its
    arguments holds several: many pipelines take them for images of several samples.

    Args:
        images: pipeline argument -> image, or list of several.
    """
    several = {name: len(value) for name, value in images.items() if isinstance(value, list) and len(value) > 1}
    try:
        yield
    except Exception as error:
        if not several or (isinstance(error, FlowhooksError) and not isinstance(error, PipelineFailed)):
            raise
        name, count = next(iter(several.items()))
        found = error if isinstance(error, PipelineFailed) else failed(pipe, error)
        raise ModelError(
            f"{type(pipe).__name__} does not run with {count} images as `{name}` for one sample ({found.place}: "
            f"{found.reason}); give it one"
        ) from error


def failed(pipe: Any, error: Exception) -> PipelineFailed:
    """Return the error that describes another one, raised by a call of the pipeline or of a component."""
    text = " ".join(str(error).split()) or "no message"
    reason = text if len(text) <= MESSAGE else text[:MESSAGE].rpartition(" ")[0] + " ..."
    place = f"{_component(pipe, error)}, {type(error).__name__}"
    remedy = REMEDY
    if isinstance(error, torch.OutOfMemoryError):
        remedy = "give a smaller `height` and `width`, fewer frames, or load it with `--offload`"
    return PipelineFailed(
        f"{type(pipe).__name__} fails while it is probed ({place}): {reason}; {remedy}", reason=reason, place=place
    )


def _component(pipe: Any, error: Exception) -> str:
    """Return the component of the innermost frame that belongs to one: `transformer.blocks.0`, or the call itself."""
    names: dict[int, str] = {}
    for name, part in getattr(pipe, "components", {}).items():
        if isinstance(part, nn.Module):
            names.update((id(m), f"{name}.{path}" if path else name) for path, m in part.named_modules())
        elif part is not None:
            names[id(part)] = name
    found, trace = "its own code", error.__traceback__
    while trace is not None:
        found = names.get(id(_owner(trace.tb_frame)), found)
        trace = trace.tb_next
    return found if found == "its own code" else f"in `{found}`"


def _owner(frame: FrameType) -> Any:
    return frame.f_locals.get("self")


def shown(value: Any) -> str:
    """Describe an argument briefly: an image, a tensor or an array by its size, never its numbers."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shown(part)}" for name, part in value.items()) + "}"
    if isinstance(value, (list, tuple)) and value and not _plain(value):
        return f"{len(value)} times {shown(value[0])}"
    if _picture(value):
        return f"{type(value).__name__} {_size(value)}"
    text = repr(value)
    return text if len(text) <= ARGUMENT else text[:ARGUMENT] + "..."


def pictures_in(arguments: Mapping[str, Any]) -> list[str]:
    """Return the names of arguments that hold images, videos, or tensors in their place."""
    return [name for name, value in arguments.items() if _holds_pictures(value)]


def _holds_pictures(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and _holds_pictures(value[0])
    return _picture(value) or (isinstance(value, Tensor) and value.dim() >= 3)


def _picture(value: Any) -> bool:
    """Return whether this is a Pillow image or an array of one."""
    return hasattr(value, "getbands") or (hasattr(value, "__array__") and not isinstance(value, Tensor))


def _size(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return "x".join(map(str, value.size)) if shape is None else str(tuple(shape))


def _plain(values: Any) -> bool:
    return all(value is None or isinstance(value, (bool, int, float, str)) for value in values)
