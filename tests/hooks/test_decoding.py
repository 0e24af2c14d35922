"""Latents are decoded several at once, in memory that has a bound, to what each is decoded to alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flowhooks.hooks import decoding
from flowhooks.hooks.decoding import Decoder
from tests.families import learnt

#: A convolution of several images may add in another order than one of a single image.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
PARTS = {1: [1, 1, 1], 2: [2, 1], 8: [3]}


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "wan"])
def test_samples_are_decoded_as_each_is_alone(name, monkeypatch):
    model = learnt(name)
    decoder, latents, decode = Decoder(model, "a test"), torch.randn(3, *model.sample_shape), model.pipe.vae.decode
    each, seen = model.size["height"] * model.size["width"] * (model.length or 1), []

    def counted(z, *args, **kwargs):
        seen.append(len(z))
        return decode(z, *args, **kwargs)

    monkeypatch.setattr(model.pipe.vae, "decode", counted)
    found = {}
    for count in PARTS:
        monkeypatch.setattr(decoding, "AT_ONCE", count * each)
        found[count] = decoder.frames(latents), decoder.gradient(latents, lambda pictures: pictures.square())
    assert seen == [size for parts in PARTS.values() for size in [*parts, *parts, 1, 1, 1]]
    for several in (found[2], found[8]):
        torch.testing.assert_close(several, found[1], **TOLERANCE)


@pytest.mark.parametrize(
    ("height", "width", "frames", "count"),
    [(1024, 1024, None, 1), (512, 512, None, 4), (480, 832, 81, 1), (16, 16, None, 6)],
)
def test_memory_is_bounded_by_that_of_one_large_image(height, width, frames, count):
    size = SimpleNamespace(size={"height": height, "width": width}, length=frames)
    assert Decoder(learnt("sd3"), "a test")._at_once(torch.zeros(6, 1), size) == count
