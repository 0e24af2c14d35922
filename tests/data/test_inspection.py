from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from flowhooks.data import images
from flowhooks.data.assets import FileAsset
from flowhooks.data.clips import container_of
from flowhooks.data.geometry import Geometry
from flowhooks.data.images import NEEDS_HEIF, BadImage
from flowhooks.data.inspection import inspect_image
from flowhooks.data.transform import load_pixels
from tests.data.folders import write_image

SUFFIXES = ("png", "jpg", "jpeg", "jfif", "webp", "bmp", "tif", "tiff", "avif", "heic")
pillow_heif.register_heif_opener()  # to write them; the package reads them without


def refusal(path: Path, data: bytes | None = None) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BadImage) as caught:
        inspect_image(FileAsset(path))
    return str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sound_image_has_size_and_digest(tmp_path, suffix):
    path = write_image(tmp_path / f"a.{suffix}", (40, 24))
    facts = inspect_image(FileAsset(path))
    assert (facts.width, facts.height, facts.size) == (40, 24, "40x24")
    assert facts.digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97])
def test_a_file_cut_short_is_refused(tmp_path, suffix, kept):
    path = write_image(tmp_path / f"a.{suffix}", (64, 64))
    data = path.read_bytes()
    assert "cut off" in (message := refusal(path, data[: int(kept * len(data))])) or "damaged" in message


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_a_flipped_bit_in_a_png_is_refused(tmp_path, at):
    path = write_image(tmp_path / "a.png", (64, 64))
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 4
    assert "damaged" in refusal(path, bytes(data))


def test_what_is_no_image_says_what_it_is(tmp_path):
    assert refusal(tmp_path / "a.png", b"") == "is empty (0 bytes)"
    assert "begins with b'hello world'" in refusal(tmp_path / "b.png", b"hello world")
    assert "damaged" in refusal(tmp_path / "c.png", b"\x89PNG\r\n\x1a\n")
    assert "not a PNG, JPEG, WebP, BMP, TIFF, AVIF or HEIC" in refusal(tmp_path / "d.png", b"GIF89a" + bytes(40))


def test_a_jpeg_named_png_is_read_by_its_content(tmp_path):
    path = tmp_path / "a.png"
    write_image(tmp_path / "a.jpg", (40, 24)).rename(path)
    assert inspect_image(FileAsset(path)).size == "40x24"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif", "heic"])
def test_the_size_is_that_of_the_upright_image(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 8
    # As bytes the plug-in for HEIC turns it into the container's own rotation, which is the one that counts there.
    path = write_image(tmp_path / f"a.{suffix}", (40, 24), exif=exif.tobytes())
    assert inspect_image(FileAsset(path)).size == "24x40"
    assert load_pixels(path.read_bytes(), Geometry(width=24, height=40)).shape == (3, 40, 24)


@pytest.mark.parametrize("suffix", ["png", "webp", "avif"])
def test_an_animation_is_refused(tmp_path, suffix):
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (0, 255)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert "animated" in refusal(path)


def bomb(edge: int) -> bytes:
    """A PNG of few bytes that declares `edge` x `edge` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("edge", [10_000, 40_000])
def test_a_decompression_bomb_is_refused_without_decoding_it(tmp_path, edge):
    assert "decompression bomb" in refusal(tmp_path / "a.png", bomb(edge))


def test_a_jpeg_with_bytes_behind_its_end_is_accepted(tmp_path):
    path = write_image(tmp_path / "a.jpg", (40, 24))
    path.write_bytes(path.read_bytes() + b"made by a phone")
    assert inspect_image(FileAsset(path)).size == "40x24"


@pytest.mark.parametrize("suffix", ["tif", "avif", "heic"])
def test_what_newer_formats_hold_is_what_was_written(tmp_path, suffix):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = (200, 100, 50)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, quality=100)
    seen = (load_pixels(path.read_bytes(), Geometry(width=16, height=16)).transpose(1, 2, 0) + 1) * 127.5
    assert np.abs(seen[:, [0, 1, 2, 13, 14, 15]] - pixels[:, [0, 1, 2, 13, 14, 15]]).max() <= 6


@pytest.mark.parametrize("suffix", ["avif", "heic"])
def test_a_still_picture_in_boxes_is_no_video(tmp_path, suffix):
    data = write_image(tmp_path / f"a.{suffix}", (40, 24)).read_bytes()
    assert data[4:8] == b"ftyp" and container_of(data) is None
    assert inspect_image(FileAsset(tmp_path / f"a.{suffix}"), clips=True).frames == 1


def test_a_heic_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.heic", (40, 24))
    monkeypatch.setattr(images, "reads_heic", lambda: False)
    assert refusal(path) == NEEDS_HEIF and "pip install 'flowhooks[heic]'" in NEEDS_HEIF
    with pytest.raises(BadImage, match="pip install"):
        load_pixels(path.read_bytes(), Geometry(width=40, height=24))


def test_a_tiff_is_one_page_of_colours(tmp_path):
    one, small = (Image.new("RGB", size, (9, 9, 9)) for size in ((40, 24), (20, 12)))
    path = tmp_path / "a.tif"
    one.save(path, save_all=True, append_images=[one])
    assert refusal(path) == "holds 2 pages; save the one to train on as a file of its own"
    small.encoderinfo = {"tiffinfo": {254: 1}}  # a smaller version of the same picture
    one.save(path, save_all=True, append_images=[small])
    assert inspect_image(FileAsset(path)).size == "40x24"
    Image.new("F", (40, 24), 0.5).save(path)
    assert refusal(path) == "holds numbers of 32 bits, not colours; save it with 8 or 16 bits"
