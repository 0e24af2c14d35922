"""The probe on a real, tiny Stable Diffusion 3: what it learns equals what the pipeline does, and it leaves no
trace."""

from __future__ import annotations

import pytest
import torch

from flowhooks.errors import ModelError
from flowhooks.probe import Condition, Layout, probe
from flowhooks.probe.layout import Gather


@pytest.fixture
def model(tiny_sd3, short_prompts):
    return probe(tiny_sd3, arguments=short_prompts)


def test_contract_of_sd3(model):
    contract = model.contract
    (time,) = contract.times
    assert (time.name, time.scale, time.offset) == ("timestep", 1000.0, 0.0)
    assert sorted(contract.rules) == ["encoder_hidden_states", "pooled_projections"]
    assert contract.guidance == ("classifier-free",) and contract.call["guidance_scale"] == 1.0
    assert contract.fixed_text and not contract.joint and contract.boundary is None
    assert model.layout(16, 16).shift == 3.0


@torch.no_grad()
def test_prediction_is_what_the_pipeline_gives_its_scheduler(model, tiny_sd3, short_prompts):
    """Stock run, velocities caught by a scheduler of our own in the test; then our predict at the same states."""
    caught = []
    step = type(tiny_sd3.scheduler).step

    def spy(self, velocity, timestep, sample, **kwargs):
        caught.append((velocity.clone(), float(timestep) / 1000, sample.clone()))
        return step(self, velocity, timestep, sample, **kwargs)

    tiny_sd3.scheduler.step = spy.__get__(tiny_sd3.scheduler)
    tiny_sd3("one photo", num_inference_steps=4, guidance_scale=1.0, output_type="latent", **short_prompts)
    condition = model.encode_prompts(["one photo"])
    for velocity, sigma, sample in caught:
        mine = model.predict(sample, torch.tensor([sigma]), condition)
        torch.testing.assert_close(mine, velocity, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_batch_gives_each_sample_what_it_gets_alone(model):
    prompts = ["a photo of seven", "one", ""]
    noisy, sigma = torch.randn(3, 4, 8, 8), torch.tensor([0.9, 0.5, 0.1])
    together = model.predict(noisy, sigma, model.encode_prompts(prompts))
    for i, prompt in enumerate(prompts):
        alone = model.predict(noisy[i : i + 1], sigma[i : i + 1], model.encode_prompts([prompt]))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (8, 16)])
def test_decode_is_the_pipelines_own(model, tiny_sd3, short_prompts, size):
    height, width = size
    call = dict(prompt="one", num_inference_steps=2, guidance_scale=1.0, height=height, width=width, **short_prompts)
    latents = tiny_sd3(**call, output_type="latent", generator=torch.Generator().manual_seed(0)).images
    pixels = tiny_sd3(**call, output_type="pt", generator=torch.Generator().manual_seed(0)).images
    torch.testing.assert_close(model.decode(latents, height, width).clamp(-1, 1) / 2 + 0.5, pixels, atol=1e-5, rtol=0)


@torch.no_grad()
def test_layout_round_trip(model):
    layout = model.layout(16, 16)
    z = torch.randn(2, *layout.vae_shape)
    torch.testing.assert_close(layout.to_vae(layout.from_vae(z)), z, atol=1e-6, rtol=0)
    assert layout.ordered and layout.sample_shape == (4, 8, 8)
    torch.testing.assert_close(layout.vae.scale, torch.full((256,), 1 / 1.5, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(layout.vae.shift, torch.full((256,), 0.06, dtype=torch.float64), atol=1e-6, rtol=0)


@torch.no_grad()
def test_encode_is_the_vae_at_the_pipelines_scale(model, tiny_sd3):
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    expected = (tiny_sd3.vae.encode(pixels).latent_dist.mode() - 0.06) * 1.5
    torch.testing.assert_close(model.encode_images(pixels), expected, atol=1e-5, rtol=0)


def test_a_packed_layout_moves_masks_with_the_latents():
    order = torch.randperm(16)
    scale, shift = torch.full((16,), 2.0), torch.full((16,), 0.5)
    plain = Gather(shape=(4, 4), source=None, scale=None, shift=None)
    layout = Layout(
        sample_shape=(4, 4),
        sample_argument="hidden_states",
        listed=False,
        into=plain,
        out=plain,
        vae=Gather(shape=(1, 4, 4), source=order, scale=scale, shift=shift),
        arguments={},
        shift=1.0,
    )
    sample = torch.randn(2, 4, 4)
    z = layout.to_vae(sample)
    assert torch.equal(z.flatten(1), sample.flatten(1)[:, order] * 2 + 0.5)
    torch.testing.assert_close(layout.from_vae(z), sample)
    assert torch.equal(layout.pack(sample.flatten(1)[:, order].reshape(2, 1, 4, 4)), sample)


def test_probing_leaves_no_trace(tiny_sd3, short_prompts):
    def traces():
        parts = [
            tiny_sd3,
            tiny_sd3.scheduler,
            *(m for m in tiny_sd3.components.values() if isinstance(m, torch.nn.Module)),
        ]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in tiny_sd3.transformer.modules()]
        return [(type(p), sorted(vars(p))) for p in parts], hooks, tiny_sd3.transformer.training

    def picture():
        return tiny_sd3(
            "one", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0), **short_prompts
        ).images

    first = picture()
    before, state = traces(), torch.get_rng_state()
    model = probe(tiny_sd3, arguments=short_prompts)
    model.encode_prompts(["two"])
    model.layout(16, 16)
    assert traces() == before
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, picture())


def test_fingerprint_follows_what_decides_latents(tiny_sd3, short_prompts, model):
    first = model.fingerprint
    with torch.no_grad():
        next(tiny_sd3.transformer.parameters()).add_(1)
    assert model.fingerprint == first
    with torch.no_grad():
        tiny_sd3.vae.encoder.conv_in.weight.add_(1e-3)
    assert model.fingerprint != first


def test_pipelines_that_cannot_be_learnt_are_refused(tiny_sd3, short_prompts):
    from diffusers import EulerDiscreteScheduler

    tiny_sd3.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ModelError):
        probe(tiny_sd3, arguments=short_prompts)
    tiny_sd3.transformer = None
    with pytest.raises(ModelError, match="no network that is given a time, such as a `transformer`"):
        probe(tiny_sd3, arguments=short_prompts)


def test_conditions_that_do_not_fit_go_through_apart(model):
    """Samples of other shapes get a forward of their own, and every one gets what it gets alone."""
    rules = {"x": ["axis", 0]}
    a, b = (Condition.of_samples([{"x": torch.ones(1, n)}], rules) for n in (3, 4))
    mixed = a.join([b, a])
    assert [(rows, tuple(arguments["x"].shape)) for rows, arguments in mixed.groups()] == [
        ([0, 2], (2, 3)),
        ([1], (1, 4)),
    ]
    assert mixed[1:].size == 2 and mixed.size == 3
    half = mixed.to(dtype=torch.bfloat16)
    assert half.samples[1]["x"].dtype == torch.bfloat16
    torch.testing.assert_close(Condition.unflatten(mixed.flatten()).flatten(), mixed.flatten())
