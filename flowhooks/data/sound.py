"""Apply the keys of a data set of sound: rate and channels of its files, the length that is trained, and the keys of
images that do not concern it. Free of torch.

The length of a clip in samples takes the place of an image's width; its height is 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowhooks.data.blocks import AUDIO, holds_sound
from flowhooks.data.findings import Findings, count, some
from flowhooks.data.records import DataSet
from flowhooks.documents.schemas import schemas

CHANNELS = {"mono": 1, "stereo": 2}
OF_SOUND = ("duration", "sample_rate", "channels")
_OF_PICTURES = (
    *("resolution", "resolution_type", "aspect", "resolution_multiple", "minimum_image_size", "allow_upscale"),
    *("aspects", "crop_scale", "maximum_image_size", "target_downsample_size"),
    *("num_frames", "frame_selection", "reference", "reference_resolution"),
)


def sound_faults(block: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, message) for keys that concern images on a set of sound, and for those of sound on others."""
    properties = schemas()["dataloader"]["$defs"]["dataset"]["properties"]
    if block["dataset_type"] == AUDIO:
        for key in _OF_PICTURES:
            if block[key] != properties[key]["default"]:
                yield key, "is for images and videos, and this set holds sound; remove it: `duration` is its length"
        return
    for key in OF_SOUND:
        if block[key] != properties[key]["default"]:
            yield key, "is for sets with `dataset_type` 'audio'; the sets that belong to one follow it; remove it here"


def with_sound(sets: Sequence[DataSet], links: Mapping[int, Sequence[int]], found: Findings) -> list[DataSet]:
    """Return the sets with every sound file as it is read: those that belong to an audio set as that set's are."""
    read = list(sets)
    for i, linked in links.items():
        if not holds_sound(read[i].block):
            continue
        own = read[i] = _heard(read[i], None, found)
        read[i] = replace(own, columns=tuple(_heard(each, own, found) for each in own.columns))
        for j in linked:
            read[j] = _heard(read[j], own, found)
    return read


def _heard(data: DataSet, images: DataSet | None, found: Findings) -> DataSet:
    """Return a set of sound with its files as they are read: all at one rate, and with as many channels.

    Args:
        images: the audio set that a conditioning set belongs to; None for an audio set itself.
    """
    files = {stem: each.sound for stem, each in data.images.items() if each.sound is not None}
    if not files:
        return data
    leading = None if images is None else next(iter(images.images.values()), None)
    block, led = data.block, None if leading is None else leading.sound
    first = next(iter(files.values()))
    rate = led.rate if led is not None else block["sample_rate"] or first.stored_rate
    channels = led.channels if led is not None else CHANNELS.get(block["channels"], first.stored_channels)
    stated = (images or data).block
    others = [
        f"{stem} ({each.stored_rate:,} Hz, {count(each.stored_channels, 'channel')})"
        for stem, each in files.items()
        if (stated["sample_rate"] is None and each.stored_rate != rate)
        or (stated["channels"] is None and each.stored_channels != channels)
    ]
    found.listing(
        data.where,
        others,
        f"files that are not at {rate:,} Hz with {count(channels, 'channel')} as the first is",
        "set `sample_rate` and `channels`, to which files are then turned, or convert them",
    )
    turned = [stem for stem, each in files.items() if (each.stored_rate, each.stored_channels) != (rate, channels)]
    if turned and not others:
        what = f"turned into {rate:,} Hz, {count(channels, 'channel')}"
        found.notes.append(f"{data.id}: {count(len(turned), 'file')} {what}: {some(turned)}")
    read = {}
    for stem, wave in files.items():
        wave = replace(wave, rate=rate, channels=channels)
        read[stem] = replace(data.images[stem], sound=wave, width=wave.samples)
    return replace(data, images=read)


@dataclass(frozen=True, kw_only=True)
class SoundSizing:
    """Gives the length that a clip is trained at.

    Args:
        samples: of every clip; None keeps each as long as it is.
    """

    samples: int | None

    @classmethod
    def of(cls, data: DataSet) -> SoundSizing:
        """Read it from an audio set whose files were turned to one rate."""
        seconds = data.block["duration"]
        waves = [each.sound for each in data.images.values() if each.sound is not None]
        return cls(samples=None if seconds is None or not waves else round(seconds * waves[0].rate))

    def target(self, width: int, height: int, key: str = "") -> tuple[int, int]:
        """Return the number of samples that a clip of ``width`` samples is trained at, and 1."""
        return self.samples or width, height

    def scale(self, width: int, height: int) -> float:
        """Return 1: no sample is made of several."""
        return 1.0

    def too_small(self, width: int, height: int) -> bool:
        """Return False: a clip is too short only for what is trained."""
        return False
