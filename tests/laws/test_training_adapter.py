"""A training adapter is on in every forward of the loss, whatever role it is of, and off in everything that is
sampled."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import pytest
import torch

import flowhooks
from flowhooks.adapters import load_adapter
from flowhooks.errors import AdapterError, CheckpointError
from flowhooks.probe import FlowModel
from flowhooks.probe.offloading import BlockOffload
from flowhooks.probe.recomputing import gradient_checkpointing
from flowhooks.sampling.steps import draw_noise
from tests.adapters.helpers import appearance
from tests.laws.cases import Loop, batch_for, run_document, shared_model, teacher, tiny_model
from tests.laws.test_laws import picture
from tests.laws.test_quantized_base import shared_int8_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

#: Recipes whose every forward is one of the loss, and how far fp32 takes their loss from that of a base with the
#: adapter merged: pairs, whose margin is a small difference; the averaged weights as a teacher of features; flow maps
#: with a second adapter.
RECIPES = {"masked_flow_dpo": 3e-4, "self_flow_ema": 1e-6, "anyflow_on_policy": 2e-6}


def told(recipe: str, adapter: str = "lora", **more) -> dict:
    document = run_document(recipe, adapter)
    document["adapter"] = {**document["adapter"], "training_adapter": teacher(), **more}
    return document


@contextmanager
def looping(document: dict, model: FlowModel | None = None, moved: float = 0.05) -> Iterator[Loop]:
    """A loop whose adapter is away from its start."""
    model = model or shared_model()
    torch.manual_seed(0)
    with flowhooks.attach(model, document) as session:
        if moved:
            with torch.no_grad():
                for i, p in enumerate(session.parameters().values()):
                    p.add_(moved * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
            session.adapter.fresh = False
        yield Loop(session, model)


@cache
def fused() -> FlowModel:
    """The tiny pipeline with the training adapter merged into its weights."""
    model = tiny_model()
    held = load_adapter(model.transformer, teacher())
    changes = {
        name: vars(layer)["scaling"]["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
        for name, layer in zip(held.targets, held.layers, strict=True)
    }
    held.detach()
    with torch.no_grad():
        for name, change in changes.items():
            model.transformer.get_submodule(name).weight.add_(change)
    return model


def first_step(loop: Loop) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    total = torch.zeros(())
    for result in loop.chunks(batch_for(0)):
        result.loss.backward()
        total += result.loss.detach()
    return total, {name: p.grad for name, p in loop.session.parameters().items() if p.grad is not None}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_role_of_the_loss_is_that_of_a_base_with_the_adapter_merged(recipe):
    document = told(recipe)
    without = {**document, "adapter": {**document["adapter"], "training_adapter": None}}
    with looping(document) as loop:
        loss, gradients = first_step(loop)
    with looping(without, fused()) as loop:
        expected, theirs = first_step(loop)
    with looping(without) as loop:
        bare, _ = first_step(loop)
    assert torch.allclose(loss, expected, rtol=RECIPES[recipe], atol=0)
    assert not torch.allclose(loss, bare, rtol=100 * RECIPES[recipe], atol=0)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        assert (gradient - theirs[name]).norm() <= max(RECIPES[recipe], 1e-5) * theirs[name].norm() + 1e-9, name


def test_a_teacher_is_on_top_of_it():
    document, states = told("flow_opd"), batch_for(0)
    without = {**document, "adapter": {**document["adapter"], "training_adapter": None}}
    found = []
    for given, model in ((document, shared_model()), (without, fused())):
        with (
            looping(given, model) as loop,
            loop.session.roles["adapter:b"](),
            loop.session.with_training_adapter(True),
            torch.no_grad(),
        ):
            found.append(loop.model.predict(states.clean, torch.full((2,), 0.7), states.condition))
    assert torch.allclose(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("adapter", "base"), [("lora", shared_model), ("lycoris_locon", shared_model), ("lora", shared_int8_model)]
)
def test_at_the_start_margins_are_0_and_images_are_those_of_the_stock_pipeline(adapter, base):
    model = base()
    stock = picture(model.pipe)
    before = appearance(model.transformer)
    with looping(told("masked_flow_dpo", adapter), model, moved=0) as loop:
        assert torch.equal(picture(model.pipe), stock)
        result = loop.session.step(batch_for(0))
        assert result.metrics["flow_dpo_margin"] == 0
        assert math.isclose(result.metrics["flow_dpo_loss"], math.log(2), rel_tol=1e-6)
        # Between the forward and the backward too.
        assert torch.equal(picture(model.pipe), stock)
        result.loss.backward()
        held = loop.session.training_adapter.tensors()
        assert not {id(each) for each in held} & {id(p) for p in loop.session.parameters().values()}
        assert not any(each.requires_grad or each.grad is not None for each in held)
    assert appearance(model.transformer) == before


@contextmanager
def recomputed() -> Iterator[FlowModel]:
    with gradient_checkpointing(shared_model().transformer, True):
        yield shared_model()


@contextmanager
def offloaded() -> Iterator[FlowModel]:
    model = tiny_model()
    model.transformer.requires_grad_(False)
    with BlockOffload(model.transformer, torch.device("cpu")).open(), gradient_checkpointing(model.transformer, True):
        yield model


@pytest.mark.parametrize(("adapter", "place"), [("lycoris_locon", recomputed), ("lora", offloaded)])
def test_blocks_that_are_computed_again_have_it_on(adapter, place):
    found = []
    for around in (nullcontext(shared_model()), place()):
        with around as model, looping(told("sft_masked", adapter), model) as loop:
            found.append(first_step(loop))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


def chunks_of(loop: Loop) -> list:
    """The states that a recipe that draws is trained at in its first step."""
    step = loop.session._step(None, 0, loop.session.processes, training=True)
    return loop.session.source.source(step)


def drawing(recipe: str) -> Iterator[tuple[Loop, list]]:
    """Loops of a recipe that draws, with the adapter and without it, and a list of what they draw."""
    document = told(recipe)
    for given in (document, {**document, "adapter": {**document["adapter"], "training_adapter": None}}):
        with looping(given, moved=0) as loop:
            player, drawn = loop.session.source.player, []
            draw = player.draw
            player.draw = lambda *asked, draw=draw, drawn=drawn, **more: drawn.append(draw(*asked, **more)) or drawn[-1]
            yield loop, drawn


def test_rewarded_images_are_sampled_without_it_and_their_steps_scored_with_the_noise_that_was_drawn():
    finals, gradients = [], []
    for loop, drawn in drawing("flow_grpo"):
        visits = [chunk.views["main"].state.visit for chunk in chunks_of(loop)]
        finals.append(drawn[0].final)
        for visit in visits:
            held = loop.session.training_adapter is not None
            with loop.session.with_training_adapter(True), torch.no_grad():
                policy = visit.velocity("policy")
            noise = draw_noise(visit.state, visit.rollout.seeds, visit.index)
            density = visit.stepped_by(policy).log_density(policy)
            torch.testing.assert_close(density, -noise.square() / 2, rtol=1e-3, atol=1e-3)
            assert torch.allclose(visit.log_density(policy), density, rtol=1e-3, atol=1e-3) != held
        gradients.append(first_step(loop)[1])
    assert torch.equal(*finals)
    assert any(not torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_later_updates_on_a_rollout_compare_the_policy_with_what_the_loss_saw():
    """With the adapter on, before and after: the ratio of the first update is 1, and later ones are by those steps."""
    with looping(told("flow_grpo_updates"), moved=0) as loop:
        for result in loop.chunks(batch_for(0)):
            result.loss.backward()
            assert result.metrics["flow_grpo_ratio"] == 1 and result.metrics["flow_grpo_divergence"] == 0
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        for result in loop.chunks(batch_for(1)):
            assert result.metrics["flow_grpo_divergence"] > 0


def test_an_adjoint_is_that_of_the_steps_as_sampled_and_its_target_of_the_base_with_it():
    found = []
    for loop, drawn in drawing("adjoint_full"):
        hook = next(hook for hook in loop.session.assembly.hooks if hook.type == "adjoint_target")
        costates, bases = {}, {}
        for result in loop.chunks(batch_for(0)):
            costates |= hook._costates
            bases |= hook._bases
            # A fresh adapter is the base, with the training adapter as without.
            assert result.metrics["adjoint_drift"].nan_to_num() == 0
            assert result.metrics["adjoint_early_drift"].nan_to_num() == 0
        found.append((drawn[0].final, costates, bases))
    (final, costates, bases), (theirs, others, bare) = found
    assert torch.equal(final, theirs)
    assert costates and costates.keys() == others.keys() and bases.keys() == bare.keys()
    for index, costate in costates.items():
        assert torch.equal(costate, others[index])
    assert all(not torch.allclose(base, bare[index]) for index, base in bases.items())


def test_a_state_goes_with_its_file_and_strength():
    with looping(told("sft")) as loop:
        loop.advance(1)
        state = copy.deepcopy(loop.state())
        loop.advance(1)
        expected = loop.state()["weights"]
    with looping(told("sft")) as loop:
        loop.load(state)
        loop.advance(1)
        assert all(torch.equal(value, expected[name]) for name, value in loop.state()["weights"].items())
    for other in (None, {"path": teacher(), "strength": 0.5}):
        with looping(told("sft", training_adapter=other)) as loop, pytest.raises(CheckpointError, match="strength"):
            loop.load(state)


def test_a_file_that_cannot_be_held_is_named_and_leaves_nothing(tmp_path):
    network = shared_model().transformer
    before = appearance(network)
    with looping(run_document("sft", "lora"), moved=0) as loop:
        # A new adapter: every change is zero.
        loop.session.adapter.save(tmp_path, {})
    with (
        pytest.raises(AdapterError, match="^`adapter.training_adapter`: .*changes nothing"),
        looping(told("sft", training_adapter=str(tmp_path))),
    ):
        pass
    assert appearance(network) == before
