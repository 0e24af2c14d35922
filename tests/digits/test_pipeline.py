"""The embedded pipeline is a real one, and comes back from disk as it was saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image, ImageChops

from flowhooks.digits.judge import Score
from flowhooks.digits.model import build, example, pretrained_place, resolve_model
from flowhooks.digits.picture import BETWEEN, GAP, HEAD, MARGIN, ROW, save_comparison
from flowhooks.digits.pipeline import assemble, encode, read_pixels
from flowhooks.digits.report import as_text, asked_digits, draw, load_stock, table
from flowhooks.digits.scans import caption, write_data
from flowhooks.digits.text import clip_tokenizer, t5_tokenizer
from flowhooks.errors import ModelError


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_data(folder, limit=64)
    return read_pixels(folder / "preferred", folder / "rejected")


@pytest.fixture(scope="module")
def folder(pixels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    build(folder, pixels, steps=4, progress=False)
    return folder


@pytest.fixture
def pipe(folder):
    return load_stock(folder)


def captions():
    return [caption(digit) for digit in range(10)]


def test_it_is_a_stock_pipeline_whose_parts_are_all_there(pipe):
    assert type(pipe) is StableDiffusion3Pipeline
    assert all(part is not None for name, part in pipe.components.items() if name not in pipe._optional_components)
    assert 1.5e6 < pipe.transformer.num_parameters() < 3e6


def test_what_is_loaded_is_what_was_built(pipe):
    built = assemble(pipe.vae)
    for name in ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3"):
        ours, loaded = getattr(built, name).state_dict(), getattr(pipe, name).state_dict()
        assert ours.keys() == loaded.keys()
        assert all(torch.equal(ours[key], loaded[key]) for key in ours)


def test_saving_and_loading_again_changes_no_picture(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = load_stock(tmp_path)
    for each in (pipe, again):
        each.set_progress_bar_config(disable=True)
    call = {"prompt": caption(7), "num_inference_steps": 2, "output_type": "pt"}
    first, second = (p(generator=torch.Generator().manual_seed(0), **call).images for p in (pipe, again))
    assert first.shape == (1, 3, 32, 32)
    assert torch.equal(first, second)


def test_latents_have_mean_zero_and_deviation_one(pipe, pixels):
    scaled = (encode(pipe.vae, pixels) - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    assert scaled.shape[1:] == (4, 8, 8)
    assert scaled.mean().item() == pytest.approx(0, abs=1e-4)
    assert scaled.std().item() == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_the_ten_captions_are_far_apart_and_short(pipe):
    embeddings, _, pooled, _ = pipe.encode_prompt(
        prompt=captions(), prompt_2=None, prompt_3=None, do_classifier_free_guidance=False
    )
    assert embeddings.shape == (10, 12, 64)
    different = ~torch.eye(10, dtype=torch.bool)
    for tensor in (embeddings.flatten(1), pooled):
        nearest = torch.cdist(tensor, tensor)[different].min()
        assert nearest > 0.1 * tensor.norm(dim=1).mean()


def test_a_known_word_is_one_token_and_another_falls_apart():
    assert len(clip_tokenizer()("a handwritten seven").input_ids) == 5
    assert t5_tokenizer().tokenize("a handwritten seven") == ["▁a", "▁handwritten", "▁seven"]
    assert len(t5_tokenizer().tokenize("sevens")) > 1


def test_a_picture_depends_on_its_own_seed_and_not_on_its_batch(pipe, monkeypatch):
    monkeypatch.setattr("flowhooks.digits.report.STEPS", 2)
    together = draw(pipe, 3, progress=False)
    monkeypatch.setattr("flowhooks.digits.report.BATCH", 2)
    apart = draw(pipe, 3, progress=False)
    assert together.shape == (3, 3, 32, 32)
    assert torch.allclose(together, apart, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="digits:untrained"):
        resolve_model("digits:big")


@pytest.mark.parametrize("name", ["sft/digits.json", "flow_dpo/digits.json"])
def test_the_examples_are_found(name):
    assert example(name).is_file()


def test_the_table_shows_shares_as_percentages():
    before = Score(blot_rate=0.5, digit_accuracy=0.95, frechet=123.44, count=500)
    after = Score(blot_rate=0.125, digit_accuracy=0.94, frechet=60.0, count=500)
    rows = table(before, after)
    assert ("blot rate", "50.0%", "12.5%") in rows
    assert ("Fréchet", "123.4", "60.0") in rows
    assert "before" in as_text(rows)


def test_the_picture_puts_before_on_the_left_below_its_numbers(tmp_path):
    count = len(asked_digits(60))
    before, after = torch.full((count, 3, 32, 32), -1.0), torch.full((count, 3, 32, 32), 0.0)
    scores = [Score(blot_rate=rate, digit_accuracy=0.94, frechet=1.0, count=500) for rate in (0.288, 0.07)]
    files = [tmp_path / "picture.png", tmp_path / "other.png"]
    for file, (first, second) in zip(files, (scores, scores[::-1]), strict=True):
        save_comparison(before, after, (first, second), file, first_seed=10_000, steps=200)
    image, other = map(Image.open, files)
    left, top, cell = MARGIN + ROW, MARGIN + HEAD, 64 + GAP
    assert image.width == 2 * MARGIN + ROW + 2 * (6 * cell - GAP) + BETWEEN
    assert image.getpixel((left, top)) == (0, 0, 0)
    assert image.getpixel((image.width - MARGIN - 1, top + 10 * cell - GAP - 1)) == (128, 128, 128)
    assert image.getpixel((left + 6 * cell + 4, top)) == image.getpixel((2, 2)) == (251, 250, 247)
    # The numbers stand above the images: with others, the words differ there and nowhere else.
    difference = ImageChops.difference(image, other).getbbox()
    assert difference is not None and difference[0] >= left and difference[3] < top


def test_only_a_change_of_what_is_written_makes_a_new_pretrained_pipeline(tmp_path):
    """The name is stated here: were it to depend on defaults, every new option would cost all users a pretraining."""
    written = example("sft/digits.json")
    place = pretrained_place(Path("untrained-c52e39548e38"), written)
    assert place.name == "model-e7cf15aa071c"
    (tmp_path / "run.json").write_text(written.read_text().replace("1100", "1101"))
    assert pretrained_place(Path("untrained-c52e39548e38"), tmp_path / "run.json") != place
