"""Pictures of each sample's own: our prediction is the pipeline's for pictures, prompts and seeds that the probe never
saw, alone and in batches of different ones."""

from __future__ import annotations

import pytest
import torch

from flowhooks.errors import ModelError
from flowhooks.probe import Condition, exceptions, probe
from flowhooks.probe.learn import called_at
from flowhooks.probe.recorder import without_side_effects
from flowhooks.probe.references import picture_argument, picture_arguments
from flowhooks.probe.runs import find_networks, walked
from flowhooks.probe.values import proposed_rule, same
from flowhooks.sampling.images import sample_images
from tests.families import PIPELINES, learnt, pictured, tiny

PROMPT = "a photo of two"


def away(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def compared(model, images, prompt=PROMPT, seed=5):
    """The largest difference of our predictions from the pipeline's along a run, and the run."""
    condition = model.encode_conditions([prompt], [images])
    networks = find_networks(model.pipe)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), without_side_effects(model.pipe, networks):
        walk = walked(model.pipe, networks, model.call(prompt=prompt, generator=generator, **images), 3)
        worst = 0.0
        for name, call, step in zip(walk.names, walk.calls, walk.steps, strict=True):
            if name == model.component:
                sigma = torch.tensor([called_at(model, call, step.sigma)])
                mine = model.predict(step.sample, sigma, condition)
                worst = max(worst, away(mine, step.velocity))
    return worst, walk, condition


#: Name -> sizes in pixels of the references of some samples, by argument. More are in ``tests/data/test_references``.
CASES = {
    "wan-flf2v": [{"image": [(40, 32)], "last_image": [(32, 32)]}, {"image": [(32, 32)], "last_image": [(48, 32)]}],
    "wan22-5b-i2v": [{"image": [(40, 32)]}, {"image": [(64, 64)]}],
}


@pytest.mark.parametrize("name", CASES)
def test_every_sample_gets_what_the_pipeline_gives_it(name):
    model = learnt(name).at(32, 48)
    samples = [
        {argument: pictured(sizes, seed=7 + i) for argument, sizes in images.items()}
        for i, images in enumerate(CASES[name])
    ]
    found = [compared(model, images) for images in samples]
    assert max(worst for worst, _, _ in found) < 1e-5
    noisy = torch.cat([walk.steps[0].sample for _, walk, _ in found])
    sigma = torch.linspace(*reversed([max(0.05, low) for low in model.sigma_range]), len(found))
    conditions = [condition for _, _, condition in found]
    with torch.no_grad():
        together = model.predict(noisy, sigma, conditions[0].join(conditions[1:]))
        for i, condition in enumerate(conditions):
            alone = model.predict(noisy[i : i + 1], sigma[i : i + 1], condition)
            assert away(together[i : i + 1], alone) < 1e-5
        swapped = model.predict(noisy[:1], sigma[:1], conditions[1])
    assert away(swapped, together[:1]) > 1e-4, "another picture gives another prediction"
    # As the cache keeps it.
    back = Condition.unflatten(conditions[0].join(conditions[1:]).flatten())
    with torch.no_grad():
        assert torch.equal(model.predict(noisy, sigma, back), together)


def test_prompt_and_pictures_are_encoded_apart_where_the_pipeline_allows_it():
    model = learnt("flux-kontext")
    images = [{"image": pictured([(48, 32)])}, {}]
    both = model.encode_conditions(["a", PROMPT], images)
    apart = model.encode_prompts(["a", PROMPT]).merged(model.encode_references(images))
    assert same(both.samples, apart.samples) and both.signatures == apart.signatures
    null = model.null_conditions(both)
    assert same(null.samples, model.encode_conditions(["", ""], images).samples)
    with pytest.raises(ModelError, match=r"this condition has none; make it with `model.encode_conditions"):
        model.predict(torch.randn(2, *model.sample_shape), torch.tensor([0.5, 0.5]), model.encode_prompts(["a", "a"]))


def test_prompt_and_pictures_are_encoded_together_where_the_text_encoder_sees_the_picture():
    model = learnt("qwen-image-edit-plus")
    assert model.contract.entangled and not model.contract.optional
    with pytest.raises(ModelError, match="encodes a prompt together with its images"):
        model.encode_prompts(["a"])
    with pytest.raises(ModelError, match="does not run without references"):
        model.encode_conditions(["a"], [{}])
    with pytest.raises(ModelError, match=r"as \['image'\], not as 'mask'"):
        model.encode_conditions(["a"], [{"mask": pictured([(32, 32)])}])


def test_the_frame_that_is_given_reaches_the_network_in_place_of_the_sample():
    model = learnt("wan22-5b-i2v")
    condition = model.encode_examples(["a", PROMPT])
    sample = torch.randn(2, *model.sample_shape, generator=torch.Generator().manual_seed(0))
    seen = model.seen(sample, condition)
    frames = seen.amax((1, 3, 4))
    assert seen.shape == sample.shape and frames.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    sigma = torch.tensor([0.5, 0.9])
    with torch.no_grad():
        plain = model.predict(sample, sigma, condition)
        assert torch.equal(model.predict(sample + (1 - seen), sigma, condition), plain)
        assert not torch.equal(model.predict(sample + seen, sigma, condition), plain)
    times = model.times(model.layout(**model.size), sigma, sigma)["timestep"]
    assert sorted(set(times[1].tolist())) == [0.0, 900.0]
    with pytest.raises(ModelError, match="decodes a part of each sample's references"):
        model.decode(sample)
    whole = learnt("flux-kontext")
    assert whole.seen(torch.randn(1, *whole.sample_shape), whole.encode_examples(["a"])) is None


def test_without_its_exception_ltx_adds_fresh_noise_to_the_picture(monkeypatch):
    arguments = PIPELINES["ltx-condition"].arguments
    kept = {name: value for name, value in exceptions.CALL.items() if name != "image_cond_noise_scale"}
    monkeypatch.setattr(exceptions, "CALL", kept)
    with pytest.raises(ModelError, match="our prediction is off"):
        probe(tiny("ltx-condition"), arguments=arguments, references=["image"])


def test_what_the_decoder_gets_beside_the_sample_is_of_its_condition():
    """LTX-Video's scheduler steps all frames but the first."""
    model = learnt("ltx-i2v")
    images = [{"image": pictured([(32, 32)], seed)} for seed in (5, 6)]
    condition = model.encode_conditions(["a", "a"], images)
    sample = torch.cat([torch.randn(1, *model.sample_shape, generator=torch.Generator().manual_seed(0))] * 2)
    one, other = model.decode(sample, condition=condition)
    assert one.shape == (3, 5, 32, 32) and not torch.equal(one[:, 0], other[:, 0])
    swapped = model.decode(sample, condition=condition.take([1, 0]))
    torch.testing.assert_close(swapped, torch.stack([other, one]))


def test_a_sample_that_is_given_no_frame_keeps_all_of_its_own():
    """LTX's network gets arguments of one shape with a given frame and without."""
    model = learnt("ltx-condition")
    found = [compared(model, images) for images in ({"image": pictured([(32, 32)])}, {})]
    assert max(worst for worst, _, _ in found) < 1e-5
    conditions = [condition for _, _, condition in found]
    both, noisy = conditions[0].join(conditions[1:]), torch.cat([walk.steps[0].sample for _, walk, _ in found])
    both = Condition.unflatten(both.flatten())
    seen = model.seen(noisy, both)
    assert not seen[0].all() and seen[1].all()
    pixels = model.decode(noisy, condition=both)
    with torch.no_grad():
        together = model.predict(noisy, torch.tensor([0.5, 0.9]), both)
        for i, (condition, sigma) in enumerate(zip(conditions, (0.5, 0.9), strict=True)):
            rows = noisy[i : i + 1]
            assert away(together[i : i + 1], model.predict(rows, torch.tensor([sigma]), condition)) < 1e-5
            torch.testing.assert_close(model.decode(rows, condition=condition), pixels[i : i + 1])


def test_several_images_are_refused_where_the_pipeline_takes_one():
    model = learnt("flux-kontext")
    two = {"image": pictured([(32, 32), (32, 32)])}
    with pytest.raises(ModelError, match=r"FluxKontextPipeline does not run with 2 images as `image` for one sample"):
        model.encode_conditions(["a"], [two])
    with pytest.raises(ModelError, match=r"does not run with 2 images as `image` .*; give it one$"):
        sample_images(model.pipe, ["a"], num_inference_steps=1, arguments=model.arguments, images=[two])


def test_the_argument_for_pictures_is_found():
    assert picture_argument(tiny("flux-kontext")) == "image"
    assert picture_arguments(tiny("wan21-i2v")) == ["image", "last_image"]
    assert picture_argument(tiny("wan21-i2v")) == "image", "the one it needs"
    with pytest.raises(ModelError, match="takes no image, so it has no use for references"):
        picture_argument(tiny("sd3"))


def test_rules_are_proposed_from_one_sample():
    one = torch.rand(1, 4)
    assert proposed_rule(one, one) == ["axis", 0]
    assert proposed_rule(torch.zeros(2, 3, 4), torch.ones(2, 3, 4)) == ["axis", 0, 2]
    assert proposed_rule(torch.zeros(6, 3), torch.ones(6, 3)) is None, "places of tokens, shared by a batch"
    assert proposed_rule([[(1, 2, 3)]], None) == ["extend", "alike"]
    shared = Condition.of_samples([{"at": torch.full((1, 2), n)} for n in (2, 3, 2)], {"at": ["axis", 0, "alike"]})
    assert [rows for rows, _ in shared.groups()] == [[0, 2], [1]]
    condition = Condition.of_samples([{"places": [[(1, n, 2)]]} for n in (2, 3, 2)], {"places": ["extend", "alike"]})
    assert [rows for rows, _ in condition.groups()] == [[0, 2], [1]]
