from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from flowhooks.data.geometry import Geometry, plan_geometry
from flowhooks.data.images import BadImage
from flowhooks.data.transform import load_mask, load_pixels

WHOLE = Geometry(width=16, height=16)


def png(pixels: np.ndarray, **options) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG", **options)
    return out.getvalue()


def ramp(height: int, width: int) -> np.ndarray:
    """Red counts columns, green counts rows."""
    rows, columns = np.indices((height, width), dtype=np.uint8)
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1)


def to_levels(pixels: np.ndarray) -> np.ndarray:
    return np.rint((pixels + 1) * 127.5).astype(int)


def test_pixels_are_channels_first_in_minus_one_to_one():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[0, 5] = (255, 0, 128)
    loaded = load_pixels(png(pixels), WHOLE)
    assert loaded.shape == (3, 16, 16) and loaded.dtype == np.float32
    assert loaded[:, 0, 5] == pytest.approx([1, -1, 128 / 127.5 - 1], abs=1e-6)
    assert loaded[:, 1, 1] == pytest.approx([-1, -1, -1])


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("key", ["a", "b", "sub/c"])
def test_a_crop_without_a_resize_copies_pixels(crop, key):
    geometry = plan_geometry(41, 16, (16, 16), crop, key)
    left = round(geometry.box[0] * 41)
    assert (
        to_levels(load_pixels(png(ramp(16, 41)), geometry)) == ramp(16, 41)[:, left : left + 16].transpose(2, 0, 1)
    ).all()


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("size", [(64, 160), (128, 320), (32, 80)])
def test_image_rejected_and_mask_are_cut_alike(crop, size):
    """A bright square must land in the same place of all three, whatever the partner's own size."""
    geometry = plan_geometry(160, 64, (32, 32), crop, "win/7")
    scale = size[0] / 64
    picture = np.zeros((*size, 3), np.uint8)
    left, top, _, _ = (round(edge * scale) for edge in geometry.pixels(160, 64))
    first, last = round(16 * scale), round(48 * scale)
    picture[top + first : top + last, left + first : left + last] = 255
    expected = np.zeros((32, 32))
    expected[8:24, 8:24] = 1
    seen = (load_pixels(png(picture), geometry)[0] + 1) / 2
    assert np.abs(seen - expected)[10:22, 10:22].max() < 0.05 and np.abs(seen - expected)[:6].max() < 0.05
    mask = load_mask(png(picture[..., 0]), geometry, 8, 8)
    assert mask.shape == (1, 8, 8)
    assert mask[0] == pytest.approx(expected[::4, ::4])


def test_a_mask_cell_is_the_mean_of_its_area():
    mask = np.zeros((16, 16), np.uint8)
    mask[0, 0] = 255
    mask[8:, 8:] = 51
    loaded = load_mask(png(mask), WHOLE, 2, 2)
    assert loaded.dtype == np.float32
    assert loaded[0] == pytest.approx(np.array([[1 / 64, 0], [0, 0.2]]))


def test_transparency_is_white_in_an_image_and_black_in_a_mask():
    clear = np.zeros((16, 16, 4), np.uint8)
    assert (load_pixels(png(clear), WHOLE) == 1).all()
    assert (load_mask(png(clear), WHOLE, 4, 4) == 0).all()
    clear[...] = (255, 255, 255, 128)
    assert load_mask(png(clear), WHOLE, 4, 4) == pytest.approx(128 / 255)


def test_sixteen_bit_grey_keeps_its_levels():
    grey = np.full((16, 16), 128 * 257, np.uint16)
    assert load_mask(png(grey), WHOLE, 2, 2) == pytest.approx(128 / 255)
    assert (to_levels(load_pixels(png(grey), WHOLE)) == 128).all()


def test_a_palette_image_shows_its_colours():
    image = Image.fromarray(ramp(16, 16)).quantize(256)
    out = BytesIO()
    image.save(out, "PNG")
    assert (to_levels(load_pixels(out.getvalue(), WHOLE)) == ramp(16, 16).transpose(2, 0, 1)).all()


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to see it upright
    loaded = to_levels(load_pixels(png(ramp(16, 16), exif=exif), WHOLE))
    assert (loaded == np.rot90(ramp(16, 16), -1).transpose(2, 0, 1)).all()


def test_what_only_the_decoder_notices_is_named():
    """A PNG of sound chunks, checksums and all, whose compressed pixels stop half way."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(np.random.default_rng(0).bytes(16 * 49))
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows[:200]) + chunk(b"IEND", b"")
    with pytest.raises(BadImage, match="cannot be decoded"):
        load_pixels(data, WHOLE)
