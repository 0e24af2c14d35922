"""Read facts and samples of sound files through soundfile: WAV and FLAC."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np

from flowhooks.data.geometry import Geometry
from flowhooks.data.images import BadImage, decoding

NOT_FINITE = "holds NaN or infinity"
#: Sample formats of a WAV file that can hold NaN and infinity.
FLOATING = ("FLOAT", "DOUBLE")
#: Samples that are read at once to look for them.
BLOCK = 1 << 16
NEEDS_SOUNDFILE = "is a sound file, which needs soundfile; run `pip install 'flowhooks[sound]'`"
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC")
#: Numbers of a decoded file: about 46 minutes of stereo at 48 kHz.
MOST_NUMBERS = 2**28


@dataclass(frozen=True, kw_only=True)
class Waveform:
    """Describes a sound file, and how it is read.

    Args:
        stored_rate, stored_channels, stored_samples: what the file holds: samples a second, 1 for mono and 2 for
            stereo, and the samples of each channel.
        rate, channels: what it is turned into; those of the file unless its data set asks for others.
    """

    stored_rate: int
    stored_channels: int
    stored_samples: int
    rate: int
    channels: int

    @property
    def samples(self) -> int:
        """Return the samples of each channel at ``rate``."""
        up, down = self.ratio
        return math.ceil(self.stored_samples * up / down)

    @property
    def ratio(self) -> tuple[int, int]:
        """Return ``rate / stored_rate`` in lowest terms."""
        common = math.gcd(self.rate, self.stored_rate)
        return self.rate // common, self.stored_rate // common


def waveform_facts(data: bytes) -> Waveform:
    """Return what the header of a sound file says. Only files of floating-point samples, which can hold NaN and
    infinity, are read through, block by block. Raises BadImage."""
    if not data:
        raise BadImage("is empty (0 bytes)")
    with _opened(data) as file:
        samples, rate, channels = int(file.frames), int(file.samplerate), int(file.channels)
        finite = file.subtype not in FLOATING or _finite(file)
    if missing := _missing_bytes(data):
        raise BadImage(f"is cut off: {missing:,} of its bytes are not there")
    if not finite:
        raise BadImage(NOT_FINITE)
    if samples < 1:
        raise BadImage("holds no sound (0 samples)")
    if channels > 2:
        raise BadImage(f"has {channels} channels; mix it down to one or two")
    if samples * channels > MOST_NUMBERS:
        raise BadImage(f"holds {samples * channels:,} numbers; more than {MOST_NUMBERS:,} is refused, so cut it")
    return Waveform(stored_rate=rate, stored_channels=channels, stored_samples=samples, rate=rate, channels=channels)


def load_waveform(data: bytes, wave: Waveform, geometry: Geometry) -> np.ndarray:
    """Turn the bytes of a sound file into float32 ``[channels, samples]``, as a file holds them: full scale is [-1, 1].

    Mono becomes stereo by doubling it, stereo becomes mono by its mean, and another rate by a polyphase filter.

    Args:
        geometry: says which samples at ``wave.rate`` are kept.

    Raises BadImage.
    """
    start = round(geometry.box[0] * wave.samples)
    start = max(0, min(start, wave.samples - geometry.width))
    same = wave.rate == wave.stored_rate
    with decoding(), _opened(data) as file:
        if same:
            file.seek(start)
        read = file.read(geometry.width if same else -1, dtype="float32", always_2d=True).T
    if wave.channels != wave.stored_channels:
        read = np.repeat(read, 2, axis=0) if wave.channels == 2 else read.mean(axis=0, keepdims=True)
    if not same:
        from scipy.signal import resample_poly

        read = resample_poly(read, *wave.ratio, axis=1)[:, start : start + geometry.width]
    if read.shape[1] != geometry.width:
        raise BadImage(f"ends after {start + read.shape[1]:,} samples; its header says {wave.samples:,}")
    if not np.isfinite(read).all():
        raise BadImage(NOT_FINITE)
    return np.ascontiguousarray(read, dtype=np.float32)


@contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    if find_spec("soundfile") is None:
        raise BadImage(NEEDS_SOUNDFILE)
    import soundfile

    try:
        with soundfile.SoundFile(BytesIO(data)) as file:
            if file.format not in FORMATS:
                raise BadImage(f"is a {file.format} file; expected WAV or FLAC")
            yield file
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise BadImage(f"is no WAV or FLAC file, or damaged ({_what(error)})") from None


def _finite(file: Any) -> bool:
    return all(bool(np.isfinite(block).all()) for block in file.blocks(BLOCK, dtype="float32"))


def _what(error: Exception) -> str:
    """Return what soundfile says is wrong, without the object in memory that it names in place of a file."""
    return re.sub(r"^Error opening <[^>]*>:\s*", "", str(error)).rstrip(".")


def _missing_bytes(data: bytes) -> int:
    """Return how many bytes of a WAV file's chunks are behind its end; libsndfile reads what is there."""
    if data[:4] != b"RIFF":
        return 0
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        if name == b"data" and size in (0, 0xFFFFFFFF):
            return 0  # written to a pipe
        at += 8 + size + size % 2
    # A pad byte at the end is often left out.
    return max(0, at - len(data) - 1)
