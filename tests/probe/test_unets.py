"""U-Nets, as far as they differ from transformers: their name, the parts of their arguments, and their blocks."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from flowhooks.commands.probe import verdict
from flowhooks.errors import ModelError
from flowhooks.probe import probe
from flowhooks.probe.streams import TokenStream
from tests.families import EVERY, checks, learnt, tiny
from tests.families.stable_diffusion import flow_scheduler
from tests.hooks.adjoint_runs import ROLLOUT, run_through, target
from tests.hooks.aligned import LAYERSYNC, aligned, trained
from tests.hooks.test_on_policy import document

NAMES = ["stable-diffusion", "stable-diffusion-xl"]


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_what_the_loop_calls(name):
    model = learnt(name)
    assert model.contract.networks == ("unet",)
    assert model.transformer is model.pipe.unet


def test_a_network_that_the_loop_calls_and_whose_prediction_it_drops_is_not_trained():
    model = learnt("ideogram4")
    assert model.contract.networks == ("transformer",)
    assert model.pipe.unconditional_transformer is not None


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("stable-diffusion", "DPMSolverMultistepScheduler"), ("stable-diffusion-xl", "UniPCMultistepScheduler")],
)
def test_either_scheduler_makes_them_flow_matching(name, scheduler):
    """The other one of each is in the table. The probe compares every step's prediction."""
    pipe = tiny(name)
    pipe.scheduler = flow_scheduler(scheduler)
    assert probe(pipe, arguments=EVERY[name].arguments).contract.times[0].scale == 1000


def test_a_scheduler_that_is_not_set_to_flow_matching_is_refused():
    pipe = tiny("stable-diffusion")
    pipe.scheduler = type(pipe.scheduler)(prediction_type="epsilon", steps_offset=1)
    with pytest.raises(ModelError, match=r"as in EDM|sigma|predicts 'epsilon'"):
        probe(pipe, arguments=EVERY["stable-diffusion"].arguments)


def test_parts_of_one_argument_follow_prompt_and_size_apart():
    model = learnt("stable-diffusion-xl")
    contract = model.contract
    assert "added_cond_kwargs.text_embeds" in contract.rules
    assert set(contract.resolution_rules) == {"added_cond_kwargs.time_ids"}
    assert not contract.joint
    # Prompts share a forward.
    assert len(model.encode_prompts(checks.PROMPTS).groups()) == 1


def test_a_place_has_no_time_of_its_own():
    model = learnt("stable-diffusion-xl")
    with pytest.raises(ModelError, match="convolutions of its blocks mix the places"):
        model.tokens(torch.zeros(1, *model.sample_shape))


def test_the_places_of_every_block_are_its_tokens():
    model = learnt("stable-diffusion-xl")
    streams, extent = model.streams, model.layout(**model.size).extent
    assert {name: streams.grid(extent, stream) for name, stream in streams.found.items()} == {
        "down_blocks.0": (1, 4, 4),
        "down_blocks.1": (1, 4, 4),
        "up_blocks.0": (1, 8, 8),
        "up_blocks.1": (1, 8, 8),
    }
    image = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    stream = TokenStream(name="a", order=0, output=0, at="first", width=2, patch=(1, 1, 1))
    assert torch.equal(stream.of((image, ()), 12)[0, 5], image[0, :, 1, 1])


def test_blocks_of_two_resolutions_are_aligned():
    model = learnt("stable-diffusion-xl")
    block = {**LAYERSYNC, "block_index": 1, "teacher_block_index": 3, "projector_depth": 2, "projector_width": 16}
    with trained(model, block) as session:
        loss = aligned(session, checks.pairs(model))
        loss.backward()
        down = [p.grad for name, p in session.parameters().items() if ".down_blocks." in f".{name}"]
    assert loss.isfinite() and any(grad is not None and bool(grad.any()) for grad in down)


@torch.no_grad()
def test_a_session_leaves_the_network_as_it_was():
    model = learnt("stable-diffusion-xl")
    batch = checks.pairs(model)
    state = batch.clean, torch.tensor([0.8, 0.3]), batch.condition
    before = model.predict(*state)
    with torch.enable_grad():
        checks.gradients(model)
    assert torch.equal(model.predict(*state), before)


def test_adjoint_matching_and_its_rollouts_run():
    model = learnt("stable-diffusion")
    with flowhooks.attach(model, document(ROLLOUT, target()), allow_imports=True) as session:
        run_through(session)
        assert any(p.grad is not None and bool(p.grad.any()) for p in session.parameters().values())


def test_the_verdict_names_what_cannot_be_trained_and_why():
    found = verdict(learnt("stable-diffusion-xl"))
    refused = {name: said for name, said in found.items() if said.startswith("no")}
    assert refused.keys() == {"self_flow"} and "convolutions" in refused["self_flow"]
    assert found["feature_alignment"] == "yes, of down_blocks.0, down_blocks.1, up_blocks.0, up_blocks.1"
    experts = verdict(learnt("wan-two-experts"))
    assert {name for name, said in experts.items() if said.startswith("no")} == {"twin_flow", "distribution_matching"}
