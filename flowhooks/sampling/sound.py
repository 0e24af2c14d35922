"""Generate clips of sound with a stock pipeline's own call, reproducibly, and write them as WAV or FLAC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from flowhooks.errors import ConfigError, Problem
from flowhooks.probe.sound import Sound, sound_of
from flowhooks.sampling.images import generated

#: Suffix -> the format that soundfile writes.
FORMATS = {".wav": "WAV", ".flac": "FLAC"}
SUBTYPE = "PCM_24"


def makes_sound(pipe: Any) -> bool:
    """Return whether a pipeline makes sound, so that :func:`sample_sound` samples it."""
    return sound_of(pipe) is not None


def sample_sound(
    pipe: Any,
    prompts: Sequence[str],
    *,
    duration: float | None = None,
    arguments: Mapping[str, Any] | None = None,
    given: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> list[np.ndarray]:
    """Generate clips of each prompt, prompt by prompt, as float32 ``[channels, samples]``, and leave the pipeline
    unchanged.

    Args:
        duration: seconds; None uses the duration in ``arguments``, or the pipeline's own.
        arguments: more arguments of the pipeline's call.
        given: for each prompt, pipeline argument -> its own value, such as lyrics; empty for none at all.
        options: see :func:`flowhooks.sampling.images.generated`.
    """
    sound = _sound(pipe)
    length = {} if duration is None else {sound.argument: duration}
    made = generated(
        pipe, prompts, output_type="pt", arguments={**(arguments or {}), **length}, images=given, **options
    )
    return [each.detach().float().cpu().numpy() for each in made]


def _sound(pipe: Any) -> Sound:
    sound = sound_of(pipe)
    if sound is None:
        raise ValueError(f"{type(pipe).__name__} makes no sound")
    return sound


def rate_of(pipe: Any) -> int:
    """Return the samples of a second of the clips that a pipeline makes."""
    return _sound(pipe).rate


def write_sound(file: Path, clip: np.ndarray, rate: int, *, kind: str | None = None) -> None:
    """Write a new file with 24 bits a sample; numbers outside [-1, 1] are cut off.

    Args:
        clip: ``[channels, samples]``.
        kind: the suffix that says the format; default: that of the file.

    Raises:
        ConfigError: soundfile is not installed.
        OSError: the file exists already, or the disk refuses it.
    """
    if (refusal := no_soundfile()) is not None:
        raise ConfigError(Problem(refusal, str(file)))
    import soundfile

    # Never overwrite a file that appeared since the command began.
    with file.open("xb") as stream:
        soundfile.write(stream, clip.T.clip(-1, 1), rate, format=FORMATS[kind or file.suffix.lower()], subtype=SUBTYPE)


def no_soundfile() -> str | None:
    """Say that soundfile, which writes clips, is missing; None where it is installed."""
    if find_spec("soundfile") is None:
        return "sound is written by soundfile, which is not installed; run `pip install 'flowhooks[sound]'`"
    return None
