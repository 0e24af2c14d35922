"""Read facts and frames of videos: Pillow for moving images, PyAV for video files.

A video file is opened by the demuxer of its own format only, and no reference in it is followed to other
files: playlists could otherwise name anything on this machine or the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from flowhooks.data.images import FORMATS, MAX_PIXELS, BadImage, decoding, open_image, still_of

MOVING = (*FORMATS, "GIF")
NEEDS_AV = "is a video file, which needs PyAV; run `pip install 'flowhooks[video]'`"
#: (Position, bytes at that position) of a file's start -> the demuxer that may open it.
_CONTAINERS = ((4, b"ftyp", "mov"), (0, b"\x1a\x45\xdf\xa3", "matroska"))
#: References to other files are not followed.
_OPTIONS: dict[str, dict[str, str]] = {"mov": {"enable_drefs": "0"}, "matroska": {}}


def container_of(data: bytes) -> str | None:
    """Return the demuxer of a video file, None if these bytes begin like none."""
    if still_of(data) is not None:
        return None
    return next((demuxer for at, magic, demuxer in _CONTAINERS if data[at : at + len(magic)] == magic), None)


def moves(data: bytes) -> bool:
    """Return whether these bytes begin like a file that only sets of videos accept."""
    return container_of(data) is not None or data.startswith(b"GIF8")


def video_facts(data: bytes, demuxer: str) -> dict[str, Any]:
    """Return `width`, `height`, `frames` and `rate` of a video file, as an Image has them. Only the first frame is
    decoded.

    Raises BadImage.
    """
    with _opened(data, demuxer) as (container, stream):
        frames = sum(1 for packet in container.demux(stream) if packet.size)
        rate = stream.average_rate
    if not frames:
        raise BadImage("holds no frame")
    for frame in _decoded(data, demuxer, 1):
        if rotation := getattr(frame, "rotation", 0):
            raise BadImage(f"is stored turned by {rotation} degrees; write it upright")
        rate = None if rate is None else float(rate)
        return {"width": frame.width, "height": frame.height, "frames": frames, "rate": rate}
    raise BadImage("has no frame that can be decoded")


def frames_of(data: bytes, positions: Sequence[int]) -> Iterator[Image.Image]:
    """Yield the frames at these rising positions, upright. Raises BadImage where one is missing or cannot be
    decoded."""
    demuxer = container_of(data)
    with decoding():
        yield from _moving(data, positions) if demuxer is None else _video(data, demuxer, positions)


def select(total: int, count: int, how: str, chance: int) -> tuple[int, ...]:
    """Return positions of `count` of `total` frames, rising.

    Args:
        how: `first`, `center` and `random` select consecutive frames; `uniform` spreads them from the first to the
            last.
        chance: a large number that determines the choice of `random`.
    """
    spare = total - count
    if how == "uniform":
        steps = np.linspace(0, total - 1, count) if count > 1 else np.array([(total - 1) / 2])
        return tuple(int(each) for each in np.floor(steps + 0.5))
    start = {"first": 0, "center": spare // 2, "random": chance % (spare + 1)}[how]
    return tuple(range(start, start + count))


def _moving(data: bytes, positions: Sequence[int]) -> Iterator[Image.Image]:
    with open_image(data, MOVING) as image:
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"has more than {MAX_PIXELS:,} pixels")
        for position in positions:
            image.seek(position)
            image.load()
            # A copy, also where there is nothing to turn: the next frame is drawn over this one.
            yield ImageOps.exif_transpose(image)


def _video(data: bytes, demuxer: str, positions: Sequence[int]) -> Iterator[Image.Image]:
    wanted = iter(positions)
    position = next(wanted)
    number = -1
    for number, frame in enumerate(_decoded(data, demuxer, positions[-1] + 1)):
        if number == position:
            yield frame.to_image()
            position = next(wanted, -1)
    if position >= 0:
        raise BadImage(f"has {number + 1:,} frames that can be decoded; frame {position + 1:,} is needed")


def _decoded(data: bytes, demuxer: str, most: int) -> Iterator[Any]:
    with _opened(data, demuxer) as (container, stream):
        size = stream.codec_context.width, stream.codec_context.height
        for number, frame in enumerate(container.decode(stream)):
            if (frame.width, frame.height) != size:
                raise BadImage(f"changes its size from {size[0]}x{size[1]} to {frame.width}x{frame.height}")
            yield frame
            if number + 1 == most:
                return


@contextmanager
def _opened(data: bytes, demuxer: str) -> Iterator[tuple[Any, Any]]:
    if find_spec("av") is None:
        raise BadImage(NEEDS_AV)
    import av

    try:
        with av.open(BytesIO(data), format=demuxer, options=_OPTIONS[demuxer]) as opened:
            if not opened.streams.video:
                raise BadImage("holds no video")
            stream = opened.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MAX_PIXELS:
                raise BadImage(f"has frames of {width * height:,} pixels; more than {MAX_PIXELS:,} is refused")
            yield opened, stream
    except av.error.FFmpegError as error:
        raise BadImage(f"is damaged ({error.strerror})") from None
