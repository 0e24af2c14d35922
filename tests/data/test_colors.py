"""Colours come as sRGB, whatever profile a file has."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from flowhooks.data.assets import FileAsset
from flowhooks.data.colors import to_rgb
from flowhooks.data.geometry import Geometry
from flowhooks.data.inspection import inspect_image
from flowhooks.data.transform import load_clip, load_mask, load_pixels
from tests.data.folders import TRIPLE, audit_in, image_set, write_image, write_pairs
from tests.data.profiles import PICTURES, cmyk, display_p3, grey

BROKEN = b"no profile at all" * 20


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def levels(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """`[H, W, 3]` in 0 to 255, as trained on."""
    pixels = load_pixels(data, Geometry(width=size[0], height=size[1]))
    return np.rint((pixels + 1) * 127.5).astype(int).transpose(1, 2, 0)


def inspected(tmp_path, data: bytes):
    (tmp_path / "a.png").write_bytes(data)
    return inspect_image(FileAsset(tmp_path / "a.png"))


def as_srgb(light: np.ndarray | float) -> np.ndarray:
    """The level, 0 to 255, of linear light in [0, 1]."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def test_display_p3_is_trained_as_the_same_colours():
    data = (PICTURES / "display_p3.png").read_bytes()
    with Image.open(PICTURES / "display_p3_expected.png") as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(levels(data, (64, 64)) - expected).max() <= 3


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_every_format_that_carries_a_profile(tmp_path, format):
    """The red of Display-P3 that is sRGB's own."""
    image = Image.new("RGB", (16, 16), (234, 51, 35))
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}}
    data = saved(image, format, icc_profile=display_p3(), **lossless.get(format, {}))
    assert inspected(tmp_path, data).profiled
    assert np.abs(levels(data, (16, 16)) - [255, 0, 0]).max() <= 4
    assert np.abs(levels(saved(image, format, **lossless.get(format, {})), (16, 16)) - [234, 51, 35]).max() <= 4


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_of_a_profile_in_8_and_16_bits(tmp_path, mode):
    """Linear light: half of it is the level 188."""
    values = np.full((16, 16), 128, np.uint8)
    if mode == "LA":
        image = Image.merge("LA", [Image.fromarray(values), Image.new("L", (16, 16), 255)])
    else:
        image = Image.fromarray(values if mode == "L" else values.astype(np.uint16) * 257)
    data = saved(image, icc_profile=grey(1.0))
    assert inspected(tmp_path, data).profiled
    assert np.abs(levels(data, (16, 16)) - as_srgb(128 / 255)).max() <= 2


def test_inks_of_a_profile(tmp_path):
    corners = np.zeros((16, 3))
    corners[0] = (100, 0, 0)
    corners[8] = (60, -30, -45)  # cyan
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = saved(image, "TIFF", icc_profile=cmyk(corners))
    assert inspected(tmp_path, data).profiled
    # CIE Lab under D50 to linear sRGB, by the matrix of Bradford's adaptation.
    y = (60 + 16) / 116
    xyz = np.array([0.9642, 1.0, 0.8249]) * np.array([y - 30 / 500, y, y + 45 / 200]) ** 3
    matrix = [[3.1341, -1.6174, -0.4907], [-0.9788, 1.9163, 0.0335], [0.0719, -0.2290, 1.4052]]
    assert np.abs(levels(data, (16, 16)) - as_srgb(np.array(matrix) @ xyz)).max() <= 4
    paper = saved(Image.new("CMYK", (16, 16), 0), "TIFF", icc_profile=cmyk(corners))
    assert levels(paper, (16, 16)).min() >= 254


def test_transparency_survives_the_profile():
    image = Image.new("RGBA", (16, 16), (234, 51, 35, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 16))
    seen = levels(saved(image, icc_profile=display_p3()), (16, 16))
    assert (seen[:, :8] == 255).all() and np.abs(seen[:, 8:] - [255, 0, 0]).max() <= 3
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 234, 51, 35])
    palette.paste(0, (0, 0, 8, 16))
    seen = levels(saved(palette, icc_profile=display_p3(), transparency=0), (16, 16))
    assert (seen[:, :8] == 255).all() and np.abs(seen[:, 8:] - [255, 0, 0]).max() <= 3


def test_an_srgb_profile_and_none_leave_every_level_as_it_is(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for options in ({}, {"icc_profile": srgb}):
        data = saved(Image.fromarray(pixels), **options)
        assert (levels(data, (16, 16)) == pixels).all()
        facts = inspected(tmp_path, data)
        assert not facts.profiled and facts.profile_fault is None


@pytest.mark.parametrize(
    ("image", "profile", "said"),
    [
        (Image.new("RGB", (16, 16), (9, 8, 7)), BROKEN, "cannot be read"),
        (Image.new("RGB", (16, 16), (9, 8, 7)), grey(1.0), "is for GRAY colours, the image holds RGB"),
        (Image.new("RGB", (16, 16), (9, 8, 7)), display_p3()[:200], "cannot be read"),
        (Image.new("L", (16, 16), 9), cmyk(np.zeros((16, 3))), "is for CMYK colours, the image holds GRAY"),
    ],
)
def test_a_broken_profile_is_told_and_ignored(tmp_path, image, profile, said):
    data = saved(image, icc_profile=profile)
    facts = inspected(tmp_path, data)
    assert not facts.profiled and said in facts.profile_fault
    assert (levels(data, (16, 16)) == np.asarray(image.convert("RGB"))).all()


def test_the_audit_warns_of_broken_profiles(tmp_path):
    write_pairs(tmp_path, ("a", "b"))
    write_image(tmp_path / "win/a.png", icc_profile=BROKEN)
    (warning,) = audit_in(tmp_path, TRIPLE).warnings
    assert warning.startswith("colour profiles that cannot be used (1): a.png (it cannot be read")
    assert warning.endswith("these files are read as sRGB")


def test_frames_of_a_clip_have_their_profile_too():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((234, 51, 35), (0, 0, 0))]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, icc_profile=display_p3())
    clip = load_clip(data, Geometry(width=16, height=16, shown=(0, 1)))
    assert np.abs((clip[:, 0].reshape(3, -1).T + 1) * 127.5 - [255, 0, 0]).max() <= 3


def test_a_mask_holds_weights_and_no_colours():
    data = saved(Image.new("L", (16, 16), 128), icc_profile=grey(1.0))
    assert load_mask(data, Geometry(width=16, height=16), 2, 2) == pytest.approx(128 / 255)


def test_colours_without_a_profile_of_their_own():
    assert to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).getpixel((0, 0)) == (255, 0, 0)
    assert to_rgb(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert max(to_rgb(Image.new("LAB", (1, 1), (255, 0, 0))).getpixel((0, 0))) >= 250


def test_the_cache_makes_anew_what_a_profile_changes_and_nothing_else(tmp_path, model):
    from flowhooks.data.encode import Pictures

    write_image(tmp_path / "win/plain.png")
    write_image(tmp_path / "win/wide.png", icc_profile=display_p3())
    records = {r.key: r for r in audit_in(tmp_path, [image_set("win", caption_strategy="filename")]).records}
    about = {key: Pictures(model).about((record.image, record.geometry)) for key, record in records.items()}
    assert about["wide"]["colors"] == 1 and "colors" not in about["plain"]
    assert about["plain"].keys() == {"format", "file", "geometry", "model", "dtype"}
