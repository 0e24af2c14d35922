"""Pictures in and out: ours are the pipeline's own, and where they cannot be, the reason is named."""

from __future__ import annotations

import pytest
import torch

from flowhooks.errors import ModelError
from flowhooks.probe import FlowModel, Layout, probe
from tests.families import PIPELINES, learnt, tiny

LTX = PIPELINES["ltx"].arguments


def after_the_vae(pipe, change):
    """Let the pipeline change its picture before it returns it."""
    processor = pipe.image_processor
    postprocess = processor.postprocess
    processor.postprocess = lambda pixels, **options: change(postprocess(pixels, **options))


def test_a_pipeline_that_works_on_its_picture_is_refused(tiny_sd3, short_prompts):
    after_the_vae(tiny_sd3, lambda pictures: pictures**2)
    with pytest.raises(ModelError, match="changes latents or image by more than a scale"):
        probe(tiny_sd3, height=16, width=16, arguments=short_prompts)


def test_a_pipeline_that_enlarges_its_picture_is_refused(tiny_sd3, short_prompts):
    after_the_vae(tiny_sd3, lambda pictures: torch.nn.functional.interpolate(pictures, scale_factor=2.0))
    with pytest.raises(ModelError, match="changes their size, or adds to them, after its VAE"):
        probe(tiny_sd3, height=16, width=16, arguments=short_prompts)


def test_encoding_that_does_not_invert_decoding_is_refused(tiny_sd3, short_prompts, monkeypatch):
    """A VAE whose scale is one thing for encoding and another for decoding."""
    from_vae = Layout.from_vae
    probed = []

    def other_scale(self, z):
        probed.append(z)
        return from_vae(self, z) * (1 if len(probed) == 1 else 1.3)  # the first call is the layout's own round trip

    monkeypatch.setattr(Layout, "from_vae", other_scale)
    with pytest.raises(ModelError, match=r"come back to its VAE 0.\d+ off, relative"):
        probe(tiny_sd3, height=16, width=16, arguments=short_prompts)


def test_a_decoder_that_is_told_a_time_gets_the_pipelines():
    """LTX-Video since 0.9.1; without the time its decoder does not run."""
    pipe = conditioned_ltx()
    model = probe(pipe, arguments={**LTX, "decode_timestep": 0.05, "decode_noise_scale": 0.0})
    layout = model.layout(32, 32)
    (told,) = layout.decode_args
    assert told.tolist() == pytest.approx([0.05])
    two = torch.randn(2, *model.sample_shape)
    one_by_one = torch.cat([model.decode(z, 32, 32) for z in two.split(1)])
    torch.testing.assert_close(model.decode(two, 32, 32), one_by_one, atol=1e-5, rtol=0)


def test_noise_between_loop_and_vae_is_refused():
    """LTX-Video adds noise before decoding where it is asked to; it would be learnt as a shift of the latents."""
    with pytest.raises(ModelError, match="it adds noise between its loop and its VAE"):
        probe(conditioned_ltx(), height=32, width=32, arguments={**LTX, "decode_timestep": 0.5})


def conditioned_ltx():
    from diffusers import AutoencoderKLLTXVideo

    pipe = tiny("ltx")
    torch.manual_seed(0)
    settings = {key: value for key, value in pipe.vae.config.items() if not key.startswith("_")}
    vae = AutoencoderKLLTXVideo(**{**settings, "timestep_conditioning": True}).eval()
    return type(pipe)(**{**pipe.components, "vae": vae})


@pytest.mark.parametrize("name", ["sd3", "hunyuan-video"])
def test_half_precision_is_not_taken_for_another_picture(name):
    assert isinstance(learnt(name, dtype=torch.bfloat16), FlowModel)
