"""Pipelines that make sound: a length in place of height and width, waveforms in and out, latents over one axis."""

from __future__ import annotations

from functools import wraps

import pytest
import torch

from flowhooks.cli import parser
from flowhooks.commands.probe import length
from flowhooks.errors import ModelError
from flowhooks.probe import probe
from flowhooks.probe.learn import called_at
from flowhooks.probe.recorder import without_side_effects
from flowhooks.probe.runs import walked
from flowhooks.probe.sound import sound_of, verify_length
from tests.families import learnt, sound, tiny


@pytest.fixture(scope="module", params=sound.ROWS)
def model(request):
    return learnt(request.param)


def test_it_is_learnt_at_a_length(model):
    assert model.sound.rate == 800 and model.sound.hop == 8
    assert model.size == {"height": 1, "width": 128} and sorted(model.sample_shape) == [4, 16]
    assert model.call()[model.sound.argument] == 0.16


@torch.no_grad()
def test_predictions_are_the_pipelines_at_a_length_and_a_prompt_that_the_probe_never_saw(model):
    long = model.at(1, 200)
    networks, prompt = model.contract.networks_of(model.pipe), "a photo of seven"
    condition = long.encode_prompts([prompt])
    with without_side_effects(model.pipe, networks):
        generator = torch.Generator().manual_seed(5)
        walk = walked(model.pipe, networks, long.call(prompt=prompt, generator=generator), 3)
    for asked, step in zip(walk.calls, walk.steps, strict=True):
        sigma = torch.tensor([called_at(long, asked, step.sigma)])
        mine = long.predict(step.sample, sigma, condition)
        assert sorted(mine.shape[1:]) == [4, 25]
        assert float((mine - step.velocity).abs().max()) <= 1e-5 * max(1.0, float(step.velocity.abs().max()))


@torch.no_grad()
def test_waveforms_become_latents_and_come_back(model):
    clip = torch.sin(torch.arange(128) / 5).expand(2, model.sound.channels, -1)
    latents = model.encode_images(clip)
    assert torch.equal(latents, model.encode_images(clip)), "the mode of the posterior, not a draw of it"
    assert latents.shape == (2, *model.sample_shape)
    assert model.decode(latents).shape == clip.shape


def test_channels_and_rate_are_those_of_the_autoencoder(model):
    assert model.sound.channels == {2: 2, 1: 1}[model.pipe.vae.decode(torch.zeros(1, 4, 2)).sample.shape[1]]
    assert sound_of(tiny("sd3")) is None


def test_a_mask_of_one_axis_lies_on_the_sample(model):
    mask = (torch.arange(16) < 5).float().expand(2, 1, -1)
    packed = model.pack_mask(mask, torch.zeros(2, *model.sample_shape))
    axis = 1 + model.sample_shape.index(16)
    spread = torch.broadcast_to(packed, (2, *model.sample_shape)).movedim(axis, 1)
    assert torch.equal(spread[:, :, 0], mask[:, 0]) and torch.equal(spread.amin(2), spread.amax(2))
    with pytest.raises(ModelError, match=r"the mask's grid is \(17,\), the latents' is \(16,\)"):
        model.pack_mask(torch.ones(1, 1, 17), torch.zeros(1, *model.sample_shape))


@torch.no_grad()
def test_lyrics_are_each_samples_own():
    """An unseen text is predicted with as the pipeline does; the text of another sample, or none, gives another."""
    pipe = tiny("ace-step")
    model = probe(pipe, arguments={"audio_duration": 0.16}, references=("lyrics", "bpm"))
    assert model.contract.entangled and model.contract.optional
    texts = [{"lyrics": "nine nine eight"}, {"bpm": 77}, {}]
    conditions = model.encode_conditions(["one"] * 3, texts)
    networks = model.contract.networks_of(pipe)
    with without_side_effects(pipe, networks):
        generator = torch.Generator().manual_seed(9)
        walk = walked(pipe, networks, model.call(prompt="one", generator=generator, **texts[0]), 2)
    step = walk.steps[-1]
    own, other, none = (
        float(
            (model.predict(step.sample, torch.tensor([step.sigma]), conditions[i : i + 1]) - step.velocity).abs().max()
        )
        for i in range(3)
    )
    assert own < 1e-5 and other > 1e-3 and none > 1e-3


def test_the_command_takes_a_length_of_sound_and_no_size_of_images(model):
    def given(pipe, *argv):
        return length(pipe, parser().parse_args(["probe", "m", *argv]))

    assert given(model.pipe) == {} and given(model.pipe, "--duration", "0.2") == {model.sound.argument: 0.2}
    with pytest.raises(ModelError, match=r"--width: \w+ makes sound; give its length with --duration"):
        given(model.pipe, "--width", "64")
    with pytest.raises(ModelError, match="--duration: StableDiffusion3Pipeline makes images; give --height and --wid"):
        given(tiny("sd3"), "--duration", "1")


def test_lengths_that_the_pipeline_rounds_are_refused():
    model = learnt("longcat-audio")
    verify_length(model.at(1, 136))
    with pytest.raises(ModelError, match=r"makes 128 samples \(0.16 s\) when asked for 130 .*multiples of 8"):
        verify_length(model.at(1, 130))


def test_images_of_a_pipeline_of_sound_and_sound_of_one_of_images_are_refused():
    with pytest.raises(ModelError, match="LongCatAudioDiTPipeline generates sound, not images"):
        learnt("longcat-audio").at(16, 16)
    with pytest.raises(ModelError, match="StableDiffusion3Pipeline generates images, not sound"):
        learnt("sd3").at(1, 128)


def test_a_clip_that_the_pipeline_changes_is_refused():
    pipe = tiny("longcat-audio")

    class Reversed(type(pipe)):
        @wraps(type(pipe).__call__)
        def __call__(self, *args, **options):
            made = super().__call__(*args, **options)
            return made if options.get("output_type") == "latent" else (made[0].flip(-1),)

    pipe.__class__ = Reversed
    with pytest.raises(ModelError, match="its clip is off by .* of its peak from what its VAE decodes, so it changes"):
        probe(pipe, arguments={"audio_duration_s": 0.16})


def test_a_time_per_token_and_a_second_time_of_embeddings_that_are_tuples():
    model = learnt("ace-step")
    tokens = model.tokens(torch.zeros(1, *model.sample_shape))
    assert tokens.count == 8 and tokens.of_element[:, 0].tolist() == [i // 2 for i in range(16)]
    assert model.streams.patch == (1, 2, 2) and model.streams.grid((1, 1, 25)) == (1, 1, 13)
