"""Draw clips of sound: the least and the greatest value of each stretch of time, as editors of sound do."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from flowhooks.data.geometry import Geometry
from flowhooks.data.inspection import Picture
from flowhooks.data.waveforms import Waveform, load_waveform

#: Height of a drawn clip over its width, at a width of so many pixels.
FLAT, FULL = 0.375, 256
PAPER, INK, AXIS = (250, 250, 248), (45, 95, 160), (205, 207, 212)


def wave_picture(picture: Picture, geometry: Geometry | None, width: int) -> Image.Image:
    """Return an RGB image of a clip, each channel below the one before.

    Args:
        picture: a file of sound.
        geometry: the part that is drawn; None draws all of it.
        width: pixels of the image, at least 1; a clip of fewer samples gets a column each.

    Raises:
        BadImage: the file cannot be decoded.
    """
    wave = picture.sound
    assert isinstance(wave, Waveform), "a file of sound"
    part = geometry or Geometry(width=wave.samples, height=1)
    values = load_waveform(picture.asset.read(), wave, part)
    columns = min(width, values.shape[1])
    edges = np.linspace(0, values.shape[1], columns + 1).round().astype(int)
    height = max(8, round(FLAT * max(columns, FULL)))
    image = Image.new("RGB", (columns, height), PAPER)
    brush = ImageDraw.Draw(image)
    room = height / len(values)
    for number, channel in enumerate(values):
        middle, half = (number + 0.5) * room, 0.46 * room
        brush.line((0, middle, columns, middle), fill=AXIS)
        # Up to the first value of the next stretch, so that the curve has no gaps.
        following = channel[edges[1:].clip(max=channel.size - 1)]
        least = np.minimum(np.minimum.reduceat(channel, edges[:-1]), following).clip(-1, 1)
        most = np.maximum(np.maximum.reduceat(channel, edges[:-1]), following).clip(-1, 1)
        for x, (low, high) in enumerate(zip(least, most, strict=True)):
            brush.line((x, middle - half * float(high), x, middle - half * float(low)), fill=INK)
    return image
