from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowhooks.data.assets import FileAsset
from flowhooks.data.inspection import BadImage, inspect_image
from tests.data.folders import write_image

SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp")


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


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_size_is_that_of_the_upright_image(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 8
    assert inspect_image(FileAsset(write_image(tmp_path / f"a.{suffix}", (40, 24), exif=exif))).size == "24x40"


@pytest.mark.parametrize("suffix", ["png", "webp"])
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
