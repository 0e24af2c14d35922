"""Tell by their names which arguments of a pipeline's call take images, texts beside the prompt, or a length of sound,
and which of its parts control its network. Free of torch."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any

#: Part of a pipeline: a network that follows the sample beside the one that is trained.
CONTROL = "controlnet"
#: Arguments in which pipelines take the length of a clip of sound, in seconds.
DURATIONS = ("audio_duration", "audio_duration_s", "audio_length_in_s", "duration")


def takes_images(name: str) -> bool:
    """Return whether an argument of this name takes images of a sample: ``image``, ``last_image``. Those for an
    IP-Adapter do not count, which have an effect only where one is loaded."""
    return (name in ("image", "images") or name.endswith("_image")) and "ip_adapter" not in name


#: Arguments in which pipelines take words and numbers of each sample's own beside its prompt.
OWN_TEXTS = ("lyrics", "vocal_language", "keyscale", "timesignature", "bpm")
#: Those of them that are whole numbers.
OWN_NUMBERS = ("bpm",)


def as_own(name: str, value: Any) -> Any:
    """Return what a pipeline gets in an argument of :data:`OWN_TEXTS` for a cell of a table or a word of a command: a
    whole number where it takes one. Raises ValueError, which says what the value is not."""
    if name not in OWN_NUMBERS:
        return value
    with suppress(TypeError, ValueError):
        if (number := float(value)).is_integer():
            return int(number)
    raise ValueError(f"{value!r:.40} is no whole number")


def takes_own(name: str) -> bool:
    """Return whether an argument of this name takes images or a text of each sample's own."""
    return takes_images(name) or name in OWN_TEXTS


def duration_argument(known: Collection[str]) -> str | None:
    """Return the argument for the length of a clip among those of a pipeline's call; None where it makes images."""
    if "height" in known and "width" in known:
        return None
    return next((name for name in DURATIONS if name in known), None)


def control_refusal(kind: str) -> str:
    """Say why a pipeline with such a part is not trained.

    Args:
        kind: class of the part.
    """
    return (
        f"has in {CONTROL!r} a {kind}, a network of its own: what it adds to the trained one changes with the noisy "
        "sample at every step, so it is no condition of a sample that could be kept; train the pipeline of the same "
        "parts without it, whose LoRA this one loads too"
    )
