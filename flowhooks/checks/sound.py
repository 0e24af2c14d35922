"""Check what a run asks of a pipeline of sound, by its class and the configuration of its VAE. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowhooks.arguments import OWN_TEXTS, duration_argument
from flowhooks.checks.library import call_arguments
from flowhooks.checks.pipeline import pipeline_folder, read_index
from flowhooks.config import Run
from flowhooks.data import Record
from flowhooks.data.blocks import AUDIO, TRAINED
from flowhooks.data.waveforms import Waveform
from flowhooks.documents.document import read_settings
from flowhooks.errors import ConfigError, Problem
from flowhooks.rewards.registry import REWARDS

#: Sources of features that are made of images.
_LOOKING = ("external", "crepa")
#: Suffixes of one file, which an ``--output`` may name.
_PICTURE, _SOUNDS = ".png", (".wav", ".flac")


@dataclass(frozen=True, kw_only=True)
class Heard:
    """Says what a pipeline of sound makes, as far as the configuration of its VAE does.

    Args:
        pipeline: the name of its class.
        rate: samples of a second.
        hop: samples that become one latent.
        channels: 1 for mono, 2 for stereo.
    """

    pipeline: str
    rate: int | None
    hop: int | None
    channels: int | None


def heard(folder: Path) -> Heard | None:
    """Return what the pipeline in a folder makes; None if it makes no sound, or its class is not known.

    Raises:
        ConfigError: a file of it cannot be read.
    """
    _, pipeline = read_index(folder)
    known = call_arguments(pipeline)
    if known is None or duration_argument(known) is None:
        return None
    file = folder / "vae" / "config.json"
    vae: Mapping[str, Any] = read_settings(file) if file.is_file() else {}

    def stated(*names: str) -> int | None:
        return next((value for name in names if isinstance(value := vae.get(name), int)), None)

    ratios, strides = vae.get("downsampling_ratios"), vae.get("encoder_strides")
    hop = stated("downsampling_ratio")
    if isinstance(ratios, list):
        hop = math.prod(ratios)
    elif isinstance(strides, list) and (patch := stated("patch_size")) is not None:
        hop = patch * math.prod(strides)
    return Heard(
        pipeline=pipeline,
        rate=stated("sampling_rate", "sample_rate"),
        hop=hop,
        channels=stated("audio_channels", "in_channels"),
    )


def length_refusal(folder: Path, given: Mapping[str, Any]) -> str | None:
    """Say why a pipeline's folder cannot make what ``height``, ``width``, ``duration`` and ``output`` of a call name:
    images have no duration, and sound no height; None where it may."""
    try:
        known = call_arguments(read_index(folder)[1])
        sound = heard(folder)
    except ConfigError:
        return None
    if known is None:
        return None
    suffix = "" if given["output"] is None else Path(given["output"]).suffix.lower()
    if sound is None:
        if given["duration"] is not None:
            return "duration: the pipeline makes images; give --height and --width"
        return f"output: the pipeline makes images; name a folder or a {_PICTURE}" if suffix in _SOUNDS else None
    for name in ("height", "width"):
        if given[name] is not None:
            return f"{name}: {sound.pipeline} makes sound; give its length with --duration"
    if suffix == _PICTURE:
        return f"output: {sound.pipeline} makes sound; name a folder, or a .wav or .flac for one clip"
    return None


def sound_problems(run: Run, records: Sequence[Record]) -> Iterator[Problem]:
    """Yield why the data, the validation or a hook of a run does not fit a pipeline of sound, or sound a pipeline of
    images."""
    folder = pipeline_folder(run.model)
    if folder is None:
        return
    try:
        known, sound = call_arguments(read_index(folder)[1]), heard(folder)
    except ConfigError:
        return
    if known is None:
        return
    yield from _of_sets(run, sound)
    yield from _of_validation(run, sound)
    yield from _of_texts(run, [name for name in OWN_TEXTS if name in known])
    if sound is not None:
        yield from _of_hooks(run, sound)
    if sound is not None:
        yield from _of_files(run, sound, records)


def _of_sets(run: Run, sound: Heard | None) -> Iterator[Problem]:
    if run.data is None:
        return
    for block, path in zip(run.data.blocks, run.data.paths, strict=True):
        if block["disabled"] or block["dataset_type"] not in TRAINED:
            continue
        if (block["dataset_type"] == AUDIO) == (sound is not None):
            continue
        if sound is None:
            message = "is 'audio', and the pipeline makes images; use a pipeline that makes sound"
        else:
            message = f"is 'image', and {sound.pipeline} makes sound; it is trained on sets of 'audio'"
        yield Problem(message, str(run.data.source), f"{path}.dataset_type")


def _of_validation(run: Run, sound: Heard | None) -> Iterator[Problem]:
    validation, file = run.validation, str(run.source)
    if sound is None:
        if validation["duration"] is not None:
            message = "is the length of sound, and the pipeline makes images; set `height` and `width`"
            yield Problem(message, file, "$.validation.duration")
        return
    for key in ("height", "width"):
        if validation[key] is not None:
            yield Problem(
                f"is of images, and {sound.pipeline} makes sound; set `duration`", file, f"$.validation.{key}"
            )
    if any(validation["images"]):
        yield Problem(f"holds images, and {sound.pipeline} takes none; remove it", file, "$.validation.images")
    if isinstance(validation["num_inference_steps"], list):
        message = "is a list, whose images are compared, and sound is not; set one number"
        yield Problem(message, file, "$.validation.num_inference_steps")


def _of_texts(run: Run, taken: Sequence[str]) -> Iterator[Problem]:
    for i, texts in enumerate(run.validation["texts"]):
        for name in texts or ():
            if name not in taken:
                message = f"is no text that the pipeline takes; it takes {', '.join(taken) or 'none beside the prompt'}"
                yield Problem(message, str(run.source), f"$.validation.texts[{i}].{name}")


def _of_hooks(run: Run, sound: Heard) -> Iterator[Problem]:
    """Yield the hooks whose judge or teacher looks at images. A reward class of the user's own gets waveforms."""
    for hook in run.every_hook:
        source = hook.options.get("source")
        if hook.type == "feature_alignment" and source in _LOOKING:
            message = f"takes features of images with `source` {source!r}, and {sound.pipeline} makes sound; "
            yield Problem(f"{message}use 'layersync', 'backbone' or 'self_flow'", str(run.source), hook.where)
        for reward in hook.options.get("rewards") or ():
            if isinstance(reward, Mapping) and reward.get("type") in REWARDS:
                message = f"has the reward {reward['type']!r}, which judges images, and {sound.pipeline} makes sound; "
                yield Problem(f"{message}name a class of your own by its import path", str(run.source), hook.where)


def _of_files(run: Run, sound: Heard, records: Sequence[Record]) -> Iterator[Problem]:
    assert run.data is not None or not records
    places = (
        {}
        if run.data is None
        else dict(
            zip(
                (block["id"] for block in run.data.blocks),
                zip(run.data.blocks, run.data.paths, strict=True),
                strict=True,
            )
        )
    )
    named: set[tuple[Any, ...]] = set()
    for record in records:
        wave = record.image.sound
        if wave is None or (record.dataset, wave.rate, wave.channels, record.width) in named:
            continue
        named.add((record.dataset, wave.rate, wave.channels, record.width))
        block, path = places[record.dataset]
        for key, message in _misfits(sound, wave, record.width, block["duration"]):
            yield Problem(message, str(run.data.source) if run.data is not None else None, f"{path}.{key}")


def _misfits(sound: Heard, wave: Waveform, samples: int, duration: float | None) -> Iterator[tuple[str, str]]:
    if sound.rate not in (None, wave.rate):
        yield (
            "sample_rate",
            f"files are read at {wave.rate:,} Hz, and {sound.pipeline} makes {sound.rate:,} Hz; set it to {sound.rate}",
        )
    # Of the length at the rate that is right, so that one fault does not hide the other.
    rate = sound.rate or wave.rate
    samples = samples if rate == wave.rate else round(samples / wave.rate * rate)
    if sound.hop is not None and samples % sound.hop:
        nearest = samples // sound.hop * sound.hop or sound.hop
        yield (
            "duration",
            f"{samples / rate:g} s are {samples:,} samples, and {sound.pipeline} makes multiples of {sound.hop:,}; set "
            f"it to {nearest / rate!r}" + ("" if duration is not None else ", since the files' own lengths do not fit"),
        )
    if sound.channels not in (None, wave.channels):
        kinds = {1: "mono", 2: "stereo"}
        wanted = kinds.get(sound.channels or 0, f"{sound.channels} channels")
        yield (
            "channels",
            f"files are read as {kinds[wave.channels]}, and {sound.pipeline} makes {wanted}; set it to {wanted!r}",
        )
