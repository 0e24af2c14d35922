"""Rollouts and visits on six real pipelines, with guidance of each kind."""

from __future__ import annotations

import pytest
import torch

from flowhooks.probe.runs import find_networks
from flowhooks.sampling.encoded import EncodedPrompts
from flowhooks.sampling.flow_map_steps import first_order
from flowhooks.sampling.rollout import PipelineSampler
from flowhooks.sampling.states import RolloutState
from flowhooks.sampling.steps import Sampler
from tests.families import learnt, pictured

#: A doubled batch, two calls, an embedded scale with two calls, none embedded, a normalised sum, video.
GUIDED = {
    "sd3": {"guidance_scale": 4.5},
    "flux": {"guidance_scale": 3.5, "true_cfg_scale": 2.0, "negative_prompt": "b"},
    "flux2-klein": {"guidance_scale": 3.0},
    "qwen-image": {"true_cfg_scale": 4.0, "negative_prompt": "b"},
    "z-image": {"guidance_scale": 3.0},
    "wan": {"guidance_scale": 5.0},
}
STEPS = 4
PROMPTS, SEEDS = ("one", "one"), (5, 6)


def player(name: str) -> PipelineSampler:
    model = learnt(name)
    return PipelineSampler(model, EncodedPrompts(model.pipe))


def drawn(played: PipelineSampler, kind: str, name: str = "", keep=range(STEPS), **more):
    sampler = Sampler(kind=kind, steps=STEPS, arguments=GUIDED.get(name, {}), **more)
    return played.draw(PROMPTS, SEEDS, sampler, list(keep))


@pytest.mark.parametrize("name", GUIDED)
def test_visits_have_the_velocities_of_the_rollout_and_a_gradient(name):
    played = player(name)
    rollout = drawn(played, "ode", name)
    network = played.model.transformer.requires_grad_(True)
    for index in range(STEPS):
        velocity = played.velocity(RolloutState(player=played, rollout=rollout, index=index), "policy")
        after = rollout.transitions[index].mean(rollout.states[index], velocity)
        assert torch.equal(after.to(rollout.states[index].dtype), rollout.states[index + 1])
        found = torch.autograd.grad(velocity.float().square().mean(), list(network.parameters()), allow_unused=True)
        assert any(g is not None and g.any() for g in found), index


@pytest.mark.parametrize("name", GUIDED)
def test_some_samples_alone_are_visited_as_in_company(name):
    played = player(name)
    rollout = drawn(played, "sde", name)
    visit = RolloutState(player=played, rollout=rollout, index=2)
    with torch.no_grad():
        both, second = visit.velocity("policy"), visit.take([1]).velocity("policy")
    torch.testing.assert_close(second, both[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "flux", "qwen-image", "z-image", "wan"])
def test_without_chance_the_pictures_are_the_pipelines(name):
    played = player(name)
    rollout = drawn(played, "ode", name)
    call = played.model.call(
        prompt=list(PROMPTS),
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=STEPS,
        output_type="latent",
        **GUIDED[name],
    )
    with first_order(played.model.pipe):
        stock = played.model.pipe(**call, return_dict=False)[0]
    torch.testing.assert_close(stock.float(), rollout.final.float(), rtol=1e-4, atol=1e-5)


def test_another_role_may_be_guided_otherwise():
    played = player("sd3")
    rollout = drawn(played, "ode", "sd3")
    visit = RolloutState(player=played, rollout=rollout, index=1).with_arguments("teacher", {"guidance_scale": 1.0})
    with torch.no_grad():
        guided, plain = visit.velocity("policy"), visit.velocity("teacher")
        condition = played.model.encode_prompts(PROMPTS)
        sigma = torch.full((2,), visit.transition.start)
        expected = played.model.predict(visit.state, sigma, condition)
    assert not torch.allclose(guided, plain, atol=1e-3)
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-5)


def test_the_network_sleeps_on_the_way():
    played = player("sd3")
    rollout = drawn(played, "sde", "sd3")
    calls = []
    handle = played.model.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    for index in range(STEPS):
        RolloutState(player=played, rollout=rollout, index=index).velocity("policy")
    handle.remove()
    assert len(calls) == STEPS, "one call a visit, wherever it is"


def test_what_is_not_visited_is_not_kept():
    rollout = drawn(player("sd3"), "sde", "sd3", keep=[1, 2])
    assert sorted(rollout.states) == [1, 2, STEPS]
    kept = rollout.parked()
    assert all(state.device.type == "cpu" for state in kept.states.values())


def test_a_seed_is_a_picture_whoever_is_beside_it():
    played = player("sd3")
    sampler = Sampler(kind="sde", steps=STEPS)
    both = played.draw(PROMPTS, SEEDS, sampler, [])
    alone = played.draw(PROMPTS[:1], SEEDS[1:], sampler, [])
    torch.testing.assert_close(alone.final, both.final[1:], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both.final[0], both.final[1])


def test_prompts_are_encoded_once():
    played = player("sd3")
    encoders = [part for name, part in played.model.pipe.components.items() if name.startswith("text_encoder") and part]
    calls: list[int] = []
    handles = [encoder.register_forward_hook(lambda *_: calls.append(1)) for encoder in encoders]
    sampler = Sampler(kind="sde", steps=STEPS, arguments=GUIDED["sd3"])
    shapes = {played.shapes(prompt, sampler) for prompt in ("one", "a photo of two")}
    first = len(calls)
    rollout = played.draw(["one", "a photo of two"], SEEDS, sampler, range(STEPS))
    RolloutState(player=played, rollout=rollout, index=1).velocity("policy")
    for handle in handles:
        handle.remove()
    assert len(shapes) == 1
    assert first
    assert len(calls) == first
    assert played.encoded.bytes > 0


def test_a_prompt_is_encoded_once_with_each_of_its_images(monkeypatch):
    """Qwen-Image-Edit's text encoder sees them: neither a visit nor another sample of the prompt asks it again."""
    played, calls = player("qwen-image-edit"), []
    played.model.pipe.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    sampler = Sampler(steps=2)
    found = []
    for seed in (1, 2):
        images = {"image": pictured([(32, 32)], seed)}
        rollout = played.draw(["one", "one"], SEEDS, sampler, range(2), images=images)
        once = len(calls)
        found.append(played.velocity(RolloutState(player=played, rollout=rollout, index=1), "policy"))
        again = played.draw(["one", "one"], SEEDS, sampler, [1], images={"image": pictured([(32, 32)], seed)})
        assert torch.equal(again.final, rollout.final) and len(calls) == once
    assert not torch.equal(*found), "that of another image is another one"
    assert len(played.encoded._seen) > 1 and not played.encoded._known
    monkeypatch.setattr("flowhooks.sampling.encoded.WITH_IMAGES", 0)
    before = len(calls)
    played.draw(["one"], SEEDS[:1], sampler, [1], images={"image": pictured([(32, 32)], 3)})
    assert len(played.encoded._seen) == 1 and len(calls) > before


def test_prompts_of_other_lengths_are_told_apart():
    played = player("qwen-image")
    sampler = Sampler(kind="sde", steps=STEPS)
    assert played.shapes("one", sampler) != played.shapes("a photo of two", sampler)


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_left_as_it_was(fails):
    played = player("sd3")
    pipe = played.model.pipe
    before = {name: (type(part), dict(vars(part))) for name, part in _parts(pipe).items()}
    handle = None
    if fails:

        def broken(*_):
            raise RuntimeError("broken")

        handle = pipe.transformer.register_forward_pre_hook(broken)
        with pytest.raises(RuntimeError, match="broken"):
            drawn(played, "sde", "sd3")
        handle.remove()
    else:
        rollout = drawn(played, "sde", "sd3")
        RolloutState(player=played, rollout=rollout, index=2).velocity("policy")
    for name, part in _parts(pipe).items():
        kind, attributes = before[name]
        assert type(part) is kind
        assert vars(part).keys() == attributes.keys()
        assert all(vars(part)[key] is value for key, value in attributes.items())


def _parts(pipe) -> dict:
    return {"pipe": pipe, "scheduler": pipe.scheduler, **find_networks(pipe)}


def test_a_pipeline_without_encode_prompt_is_refused():
    from flowhooks.errors import ModelError

    class Bare:
        pass

    with pytest.raises(ModelError, match="Bare has no `encode_prompt`"):
        EncodedPrompts(Bare())
