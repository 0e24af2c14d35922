"""Pictures are prepared as the stock processors do it, with a gradient."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoImageProcessor

from flowhooks.digits.scans import load_scans
from flowhooks.errors import ModelError
from flowhooks.rewards.pictures import TOLERANCE, load_preprocessing
from tests.rewards.judges import photos, pixels_of

CLIP = {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.27, 0.28]}
PROCESSORS = {
    "clip": {**CLIP, "size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
    "clip of 2021": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 56, "crop_size": 56, "resample": 3},
    "clip that cuts much": {**CLIP, "size": {"shortest_edge": 61}, "crop_size": {"height": 40, "width": 37}},
    "clip without resizing": {**CLIP, "do_resize": False, "do_center_crop": False},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 40}},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 73, "width": 73}, "crop_size": 64},
    "resnet": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 56}, "crop_pct": 0.875},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.875},
    "no rescaling": {**CLIP, "size": {"shortest_edge": 56}, "crop_size": 56, "do_rescale": False},
    "no normalising": {**CLIP, "size": {"shortest_edge": 56}, "crop_size": 56, "do_normalize": False},
}


@pytest.fixture
def written(tmp_path):
    def write(told):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(told), encoding="utf-8")
        return str(tmp_path)

    return write


def scans():
    """Five digits, ``[5, 32, 32, 3]``: white paper with hard edges."""
    return load_scans()[0][:5, ..., None].repeat(3, axis=-1)


def difference(folder, pictures):
    """Largest, in units of [0, 1]."""
    stock = AutoImageProcessor.from_pretrained(folder, backend="pil")
    theirs = stock(images=list(pictures), return_tensors="pt", input_data_format="channels_last").pixel_values
    prepare = load_preprocessing(folder, "model")
    ours = prepare(pixels_of(pictures))
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs() * torch.tensor(prepare.std).reshape(3, 1, 1)).max() / prepare.scale)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("real", ["photos", "tall photos", "scans"])
def test_real_pictures_come_out_as_from_the_stock_processor(name, real, written):
    pictures = {"photos": photos, "tall photos": lambda: photos(rows=150, columns=101), "scans": scans}[real]()
    assert difference(written(PROCESSORS[name]), pictures) <= TOLERANCE


def test_the_tolerance_would_notice_another_filter(written):
    folder = written(PROCESSORS["clip"])
    other = load_preprocessing(folder, "model")
    object.__setattr__(other, "mode", "bilinear")
    right = load_preprocessing(folder, "model")(pixels_of(photos()))
    assert float((other(pixels_of(photos())) - right).abs().max()) * 0.26 > 3 * TOLERANCE


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({**PROCESSORS["clip"], "resample": 1}, "filter is number 1"),
        ({**PROCESSORS["clip"], "size": {"shortest_edge": 40}}, "does not fit"),
        ({"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 64, "width": 64}}, "filter|differ"),
        ({"image_processor_type": "DonutImageProcessor", "size": {"height": 64, "width": 64}}, "differ|gives|size"),
    ],
)
def test_processors_that_do_more_are_refused(told, reason, written):
    with pytest.raises(ModelError, match=f"`model` .*does more than.*({reason})"):
        load_preprocessing(written(told), "model")


def test_a_folder_without_a_processor(tmp_path):
    with pytest.raises(ModelError, match="`processor` .*preprocessor_config.json"):
        load_preprocessing(str(tmp_path), "processor")


def test_code_that_comes_with_a_model_is_not_run(written):
    folder = written({"auto_map": {"AutoImageProcessor": "theirs.Processor"}})
    with pytest.raises(ModelError, match="has no image processor that can be loaded"):
        load_preprocessing(folder, "model")


@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "deit", "resnet"])
def test_the_gradient_is_that_of_finite_differences(name, written):
    prepare = load_preprocessing(written(PROCESSORS[name]), "model")
    picture = 0.3 + 0.4 * torch.rand(1, 3, 50, 70, dtype=torch.float64)
    direction, weight = torch.randn_like(picture), torch.randn_like(prepare(picture))
    leaf = picture.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((prepare(leaf) * weight).sum(), leaf)
    ahead, behind = ((prepare(picture + step * direction) * weight).sum() for step in (1e-5, -1e-5))
    assert float((gradient * direction).sum()) == pytest.approx(float((ahead - behind) / 2e-5), rel=1e-6)


def test_white_paper_keeps_its_gradient(written):
    """Bicubic filters overshoot beyond white, and clipping that would silence half the picture."""
    prepare = load_preprocessing(written(PROCESSORS["clip"]), "model")
    leaf = pixels_of(scans()).requires_grad_()
    prepare(leaf).sum().backward()
    assert (leaf.grad.abs() > 1e-3).all()
