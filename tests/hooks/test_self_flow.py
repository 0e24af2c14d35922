"""Self-Flow: the averaged weights on the cleaner view, against passes made by hand on tiny pipelines of four kinds."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flowhooks
from flowhooks.errors import ConfigError
from flowhooks.probe.gather import Gather
from flowhooks.probe.streams import learn_streams
from tests.families import learnt
from tests.families.checks import pairs
from tests.hooks.aligned import PIPELINES, outputs_of

SELF_FLOW = {
    "type": "feature_alignment",
    "source": "self_flow",
    "block_index": 0,
    "teacher_block_index": 1,
    "projector_depth": 0,
}


def document(**more) -> dict:
    return {"adapter": {"rank": 2}, "hooks": [SELF_FLOW], "training": {"use_ema": True}, **more}


@contextmanager
def lagging(model, run: dict):
    """A session whose averaged weights are others than its own."""
    torch.manual_seed(0)
    with flowhooks.attach(model, run) as session:
        session.updated()
        with torch.no_grad():
            for name, p in session.parameters().items():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
        session.updated()
        with torch.no_grad():
            for name, p in session.parameters().items():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name) + 1)))
        yield session


def stepped(session, batch):
    """A step's result, and the step."""
    steps, gather = [], session.assembly.penalties
    session.assembly.penalties = lambda step: steps.append(step) or gather(step)
    result = session.step(batch)
    session.assembly.penalties = gather
    return result, steps[0]


@pytest.mark.parametrize("name", [*PIPELINES, "ernie-image", "sana", "wan22-5b-i2v"])
def test_the_loss_is_that_of_two_passes_made_by_hand(name):
    model = learnt(name)
    batch = pairs(model)
    with lagging(model, document()) as session:
        result, step = stepped(session, batch)
        streams, tokens = learn_streams(model), model.anatomy.tokens
        student, teacher = (streams.pick(i, "block_index") for i in (0, 1))
        view = step.views["main"]
        with outputs_of(model, student.name) as seen, torch.no_grad():
            model.predict(view.noisy, view.sigma, batch.condition, token_sigma=view.time.tokens)
        h = torch.cat([student.of(out, tokens) for out in seen[student.name]])
        low = view.time.tokens.sigmas.min(1).values
        shaped = low.reshape(-1, *[1] * (batch.clean.dim() - 1))
        clean_view = (1 - shaped) * batch.clean + shaped * view.noise
        average = session.state_dict()["hooks"]["weight_average"]["shadow"]
        own = {key: p.detach().clone() for key, p in session.parameters().items()}
        with torch.no_grad():
            for key, p in session.parameters().items():
                p.copy_(average[key])
            with outputs_of(model, teacher.name) as seen:
                model.predict(clean_view, low, batch.condition)
            for key, p in session.parameters().items():
                p.copy_(own[key])
    # Prompts that share no forward go through one after the other, in the order of the batch here.
    z = torch.cat([teacher.of(out, tokens) for out in seen[teacher.name]])
    expected = float((1 - F.cosine_similarity(h, z, dim=-1)).mean())
    assert expected > 0.01
    assert float(result.metrics["crepa_loss"]) == pytest.approx(expected, rel=1e-4)


def test_tokens_of_the_image_are_found_between_text_and_references():
    """FLUX.2's single blocks return text, image and references, one after the other."""
    model = learnt("flux2-edit")
    batch = pairs(model)
    block = model.streams.pick(2, "block_index")
    assert block.name == "single_transformer_blocks.0" and block.at == "between"
    sigma = torch.tensor([0.5, 0.9])
    with outputs_of(model, block.name) as seen, torch.no_grad():
        model.predict(batch.clean, sigma, batch.condition)
    behind = model.behind(batch.clean, batch.condition)
    (out,) = seen[block.name]
    text = out.shape[1] - model.anatomy.tokens - behind[0]
    assert behind == [256] and text > 0
    held = model.features(batch.clean, sigma, batch.condition, block=block, tokens=model.anatomy.tokens)
    assert torch.equal(held, out[:, text:-256])


def test_a_given_frame_has_no_token_of_the_samples():
    model = learnt("wan22-5b-i2v")
    layout = model.layout(**model.size)
    assert model.streams.patch == (1, 2, 2) and model.streams.grid(layout.extent) == (1, 2, 2)
    line = Gather(shape=(4, 6), source=None, scale=None, shift=None)
    assert replace(layout, sample_shape=(4, 6), into=line, vae=line).extent == (1, 1, 6), "of one axis"


def test_the_teachers_pass_ends_at_its_block():
    model = learnt("sd3")
    with lagging(model, document()) as session:
        last, calls = model.transformer.norm_out, []
        handle = last.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        result = session.step(pairs(model))
        handle.remove()
    assert result.passes == 2
    assert calls == [True], "only the student's pass reached the end"


def test_the_trained_weights_are_back_after_the_teachers_pass():
    model = learnt("sd3")
    with lagging(model, document()) as session:
        before = {key: (p, p.data_ptr(), p.detach().clone()) for key, p in session.parameters().items()}
        result = session.step(pairs(model))
        for key, p in session.parameters().items():
            assert p is before[key][0]
            assert p.data_ptr() == before[key][1]
            assert torch.equal(p, before[key][2])
        result.loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in session.parameters().values())


def test_the_teacher_drops_nothing_out():
    model = learnt("sd3")
    model.transformer.train()
    with lagging(model, document(adapter={"rank": 2, "dropout": 0.5})) as session:
        (hook,) = (h for h in session.assembly.hooks if h.type == "feature_alignment")
        _, step = stepped(session, pairs(model))
        first, second = (hook._parts.source.features(step)[0] for _ in range(2))
        dropouts = [m for m in model.transformer.modules() if isinstance(m, nn.Dropout) and m.p]
        assert torch.equal(first, second)
        assert dropouts
        assert all(m.training for m in dropouts)


def test_a_step_with_gradient_checkpointing_is_the_same():
    found = []
    for checkpointing in (False, True):
        model = learnt("flux")
        model.transformer.train()
        if checkpointing:
            model.transformer.enable_gradient_checkpointing()
        with lagging(model, document()) as session:
            loss = session.step(pairs(model)).loss
            loss.backward()
            found.append([loss.detach(), *(p.grad for p in session.parameters().values())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_held_out_data_sees_one_time_and_no_teacher():
    model = learnt("sd3")
    batch = pairs(model)
    with flowhooks.attach(model, {"adapter": {"rank": 2}, "hooks": []}) as session:
        plain = session.evaluate(batch).loss
    with flowhooks.attach(model, document()) as session:
        session.step(batch)
        result = session.evaluate(batch)
    assert result.passes == 1
    assert "alignment_loss" not in result.metrics
    assert torch.equal(result.loss, plain)


def test_no_average_is_an_error():
    model = learnt("sd3")
    run = document(training={"use_ema": False})
    with (
        pytest.raises(ConfigError, match="needs an average of the weights, .*set training.use_ema to true"),
        flowhooks.attach(model, run),
    ):
        pass


def test_no_teacher_block_is_an_error():
    hook = {key: value for key, value in SELF_FLOW.items() if key != "teacher_block_index"}
    with pytest.raises(ConfigError, match=r"\$\.hooks\[0\].*teacher_block_index"):
        flowhooks.config.resolve_run(document(hooks=[hook]), "run.json")


def test_the_whole_network_is_trained_too():
    """Full training: the average shadows every weight."""
    model = learnt("sd3")
    run = document(adapter=None, training={"use_ema": True, "trainable": "transformer"})
    with flowhooks.attach(model, run) as session:
        session.step(pairs(model)).loss.backward()
        average = session.state_dict()["hooks"]["weight_average"]["shadow"]
    assert set(average) == {f"transformer.{name}" for name, _ in model.transformer.named_parameters()}


@pytest.mark.parametrize("other", ["twin_flow", "twin_flow_target"])
def test_twin_flow_cannot_run_beside_it(other):
    run = document(hooks=[SELF_FLOW, {"type": other}])
    with (
        pytest.raises(
            ConfigError, match=rf"\$\.hooks\[0\].*`feature_alignment` cannot be in one run with `{other}`.*Self-Flow"
        ),
        flowhooks.attach(learnt("sd3"), run),
    ):
        pass
