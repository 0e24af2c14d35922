"""Pipelines that fail, or need a picture of each sample, are refused for the cause; what only looked like a failure is
learnt."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
    ZImageImg2ImgPipeline,
)

from flowhooks.cli import main
from flowhooks.errors import FlowhooksError, FlowhooksWarning, ModelError
from flowhooks.probe import probe
from flowhooks.probe.failures import MESSAGE, PipelineFailed, failed, pictures_in, shown
from flowhooks.probe.sizes import Sizes
from flowhooks.probe.values import same
from flowhooks.testing.tiny import picture
from tests.families import PIPELINES, tiny

SMALL = {"height": 16, "width": 16, "max_sequence_length": 8}
CLIP = {"height": 32, "width": 32, "max_sequence_length": 16}


def built(kind, parts, **more):
    pipe = kind(**{**parts, **more})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_to_video(scheduler=None, **more):
    """Wan's image-to-video pipeline of the tiny Wan's parts: its network takes the picture as channels beside the
    sample."""
    parts = dict(tiny("wan").components)
    network = parts["transformer"]
    channels = 16 if more.get("expand_timesteps") else 2 * network.config.in_channels + 4
    torch.manual_seed(0)
    config = {**network.config, "in_channels": network.config.in_channels if channels == 16 else channels}
    networks = [WanTransformer3DModel.from_config(config).eval() for _ in range(2)]
    parts.update(transformer=networks[0], transformer_2=networks[1] if "boundary_ratio" in more else None)
    parts.update(scheduler=scheduler or parts["scheduler"], image_encoder=None, image_processor=None)
    return built(WanImageToVideoPipeline, parts, **more)


class Flawed(StableDiffusion3Pipeline):
    """A pipeline whose call raises what it is told to."""

    error: Exception

    def encode_prompt(self, *args, **options):
        raise self.error


@pytest.mark.parametrize(
    "error", [IndexError("index 9"), AssertionError(), KeyError("a"), NotImplementedError("no"), OSError("x" * 5000)]
)
def test_any_exception_of_a_pipeline_ends_as_an_error_that_names_the_cause(error):
    pipe = built(Flawed, tiny("sd3").components)
    pipe.error = error
    with pytest.raises(ModelError, match=f"Flawed .*its own code, {type(error).__name__}") as caught:
        probe(pipe, arguments=SMALL)
    assert len(str(caught.value)) < MESSAGE + 400


def test_the_component_that_fails_is_named():
    pipe = tiny("sd3")

    def fails(*_):
        raise IndexError("no such position")

    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(fails)
    with pytest.raises(ModelError, match="no such position .in `transformer.transformer_blocks.0`, IndexError"):
        probe(pipe, arguments=SMALL)


def test_running_out_of_memory_says_how_to_need_less():
    error = failed(tiny("sd3"), torch.OutOfMemoryError("out of memory"))
    assert "smaller `height` and `width`" in str(error) and isinstance(error, FlowhooksError)


def test_messages_show_pictures_by_their_size():
    pipe = built(StableDiffusion3Img2ImgPipeline, tiny("sd3").components)
    with pytest.raises(PipelineFailed, match=r"image: tensor \(1, 3, 16, 16\)") as caught:
        probe(pipe, arguments={**SMALL, "image": torch.rand(1, 3, 16, 16), "strength": 7.0})
    assert len(str(caught.value)) < 500
    clip = [picture(16, 8)] * 5
    told = {"video": clip, "mask": torch.rand(1, 1, 4, 4), "scale": 1.0, "sizes": [1, 2], "text": "a" * 999}
    assert shown({"video": clip}) == "{video: 5 times Image 16x8}"
    assert len(shown(told)) < 200
    assert pictures_in(told) == ["video", "mask"]


def test_a_size_that_fits_is_found():
    """Neither 256 pixels nor the pipeline's own 1024 fit this table of positions."""
    pipe = tiny("aura-flow")
    assert isinstance(pipe, AuraFlowPipeline)
    with pytest.raises(PipelineFailed):
        probe(pipe, height=1024, width=1024, arguments={"max_sequence_length": 8})
    model = probe(pipe, arguments={"max_sequence_length": 8})
    assert max(model.size.values()) < 256


def test_a_network_without_twice_the_width_is_compared_with_half_of_it():
    tried = []

    class Narrow(StableDiffusion3Pipeline):
        def prepare_latents(self, batch, channels, height, width, *rest):
            tried.append(width)
            if width > 16:
                raise IndexError("no position so far right")
            return super().prepare_latents(batch, channels, height, width, *rest)

    assert probe(built(Narrow, tiny("sd3").components), arguments=SMALL).sample_shape == (4, 8, 8)
    assert {32, 8} <= set(tried)


def test_other_sizes_differ_in_width_and_in_frames():
    sizes = Sizes(tiny("wan"), {"num_frames": 5})
    own = sizes.of(32, 32)
    others = sizes.others(own)
    assert others[0] == (32, 64, 29)
    assert all(size.width != own.width and size.frames not in (own.frames, 0) for size in others)


def test_a_picture_that_fixes_the_size_is_named():
    pipe = built(ZImageImg2ImgPipeline, tiny("z-image").components)
    arguments = {**PIPELINES["z-image"].arguments, "image": picture(16, 16), "strength": 1.0}
    with pytest.raises(ModelError, match="at no other size .*the image of `image` fixes its size"):
        probe(pipe, arguments=arguments)


def test_two_experts_whose_rounded_timesteps_coincide():
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = image_to_video(scheduler, boundary_ratio=0.9)
    model = probe(pipe, arguments={**CLIP, "num_frames": 5, "image": picture(32, 32)})
    assert model.contract.boundary == pytest.approx(0.9, abs=2e-3)


def test_a_clip_is_of_the_length_that_is_drawn():
    with pytest.warns(FlowhooksWarning, match="rounds 7 frames to 5"):
        model = probe(tiny("wan"), arguments={**CLIP, "num_frames": 7})
    assert model.length == 5 and model.call()["num_frames"] == 5
    noisy = torch.randn(1, *model.sample_shape)
    assert model.predict(noisy, torch.tensor([0.5]), model.encode_prompts(["a"])).shape == noisy.shape


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.6])
def test_strength_leaves_steps_enough(strength):
    parts = tiny("flux").components
    pipe = built(FluxImg2ImgPipeline, {name: parts[name] for name in parts if name not in NO_ADAPTER})
    model = probe(pipe, arguments={**SMALL, "image": picture(16, 16), "strength": strength})
    assert model.sample_shape == (16, 16)


#: Optional components of FLUX's pipelines.
NO_ADAPTER = ("image_encoder", "feature_extractor")


def test_a_clip_for_each_sample_is_the_cause():
    parts = {k: v for k, v in tiny("wan").components.items() if k != "transformer_2"}
    pipe = built(WanVideoToVideoPipeline, parts)
    arguments = {**CLIP, "video": [picture(32, 32)] * 5}
    with pytest.raises(ModelError, match="a video of 5 frames and takes no number of frames"):
        probe(pipe, arguments=arguments)


def test_times_of_frames_that_stay_are_the_cause():
    pipe = image_to_video(expand_timesteps=True)
    with pytest.raises(ModelError, match="'hidden_states' holds 50% of the scheduler's sample .* in `references`"):
        probe(pipe, arguments={**CLIP, "num_frames": 5, "image": picture(32, 32)})


@pytest.mark.parametrize("references", [(), ("control_image",)])
def test_a_controlnet_is_the_cause(references):
    parts = tiny("flux").components
    control = FluxControlNetModel.from_config({**parts["transformer"].config, "num_layers": 1}).eval()
    pipe = built(FluxControlNetPipeline, parts, controlnet=control)
    with pytest.raises(
        ModelError, match="FluxControlNetPipeline has in 'controlnet' a FluxControlNetModel.* every step"
    ):
        probe(pipe, arguments={**SMALL, "control_image": picture(16, 16)}, references=references)


def flux_control():
    """FLUX.1's Control pipeline of the tiny FLUX's parts: it draws from the posterior of the picture it is given."""
    parts = {name: part for name, part in tiny("flux").components.items() if name not in NO_ADAPTER}
    torch.manual_seed(0)
    config = {name: value for name, value in parts["transformer"].config.items() if name[0] != "_"}
    network = FluxTransformer2DModel(**{**config, "in_channels": 32, "out_channels": 16}).eval()
    return built(FluxControlPipeline, parts, transformer=network)


def test_a_posterior_is_taken_at_its_mode_and_the_pipeline_draws_from_it_again_afterwards():
    pipe = flux_control()
    before = dict(vars(pipe.vae))
    model = probe(pipe, arguments=SMALL, references=["control_image"])
    assert dict(vars(pipe.vae)).keys() == before.keys()
    once, again = (model.encode_references([{"control_image": picture(16, 16)}]) for _ in range(2))
    assert same(once.samples, again.samples)
    posterior = pipe.vae.encode(torch.rand(1, 3, 16, 16)).latent_dist
    assert not torch.equal(posterior.sample(), posterior.mode())


class Shaky(FluxKontextPipeline):
    def prepare_latents(self, image, *args, **options):
        generator = next(each for each in args if isinstance(each, torch.Generator))
        return super().prepare_latents(image + torch.randn(image.shape, generator=generator), *args, **options)


def test_one_draw_of_noise_on_a_picture_for_all_samples_is_the_cause():
    pipe = built(Shaky, tiny("flux-kontext").components)
    arguments = {**PIPELINES["flux-kontext"].arguments, "max_area": 256}
    with pytest.raises(ModelError, match="under another seed: .*image of `image`.*name it in `references`"):
        probe(pipe, arguments={**arguments, "image": picture(16, 16)})


def test_a_text_encoder_that_draws_random_numbers_is_refused():
    """The texts of equal calls are encoded once while learning, and anew for the comparison with the pipeline."""

    class Drawing(StableDiffusion3Pipeline):
        def encode_prompt(self, *args, **options):
            prompt, *rest = super().encode_prompt(*args, **options)
            return prompt + torch.randn(prompt.shape), *rest

    with pytest.raises(ModelError, match="our prediction is off"):
        probe(built(Drawing, tiny("sd3").components), arguments=SMALL)


def test_one_picture_for_one_prompt_is_the_cause():
    class OnePicture(StableDiffusion3Img2ImgPipeline):
        def check_inputs(self, prompt, *args, **options):
            if isinstance(prompt, list):
                raise ValueError("one prompt for one picture")
            return super().check_inputs(prompt, *args, **options)

    pipe = built(OnePicture, tiny("sd3").components)
    with pytest.raises(ModelError, match="not with two: one prompt for one picture .*`image` is one only"):
        probe(pipe, arguments={**SMALL, "image": picture(16, 16)})


def test_a_subclass_keeps_the_exceptions_of_its_network():
    pipe = tiny("ltx2")
    pipe.__class__ = type("Renamed", (type(pipe),), {})
    model = probe(pipe, arguments=PIPELINES["ltx2"].arguments)
    assert model.contract.pipeline == "Renamed" and model.contract.constants["isolate_modalities"] is True


class Sound(StableDiffusion3Pipeline):
    def __call__(self, prompt, audio_duration, num_inference_steps=2):
        raise AssertionError("must not be run")


class Unsized(StableDiffusion3Pipeline):
    def __call__(self, prompt, num_inference_steps=2):
        raise AssertionError("must not be run")


@pytest.mark.parametrize(
    ("kind", "cause"), [(Sound, "makes sound, and its VAE has no `sampling_rate`"), (Unsized, "takes no `height`")]
)
def test_what_makes_no_pictures_of_a_size_is_told_as_what_it_is(kind, cause):
    with pytest.raises(ModelError, match=cause):
        probe(built(kind, tiny("sd3").components))


def test_the_command_takes_a_number_of_frames(capsys):
    assert main(["probe", "tiny:wan", "--frames", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sample_shape"] == [4, 3, 4, 4]
