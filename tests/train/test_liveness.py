"""What is trained and is dead is noticed: each way to die is made real. What is alive raises no alarm."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch

from flowhooks.errors import TrainingError
from flowhooks.train import liveness as module
from flowhooks.train.liveness import Liveness
from tests.laws.cases import ADAPTERS, RECIPES, batch_for, looping

UPDATES = 3


@pytest.fixture(autouse=True)
def _fewer_updates(monkeypatch):
    """Fewer chances for a gradient to come than in a run, so that what raises no alarm here raises none there."""
    assert UPDATES < module.UPDATES
    monkeypatch.setattr(module, "UPDATES", UPDATES)


@contextmanager
def watched(loop, **more):
    liveness = Liveness(loop.session, loop.model.transformer, nullcontext, **more)
    with liveness.watching():
        yield liveness


def advance(loop, liveness, updates, *, rate=1e-2, scale=1.0):
    """Updates of a loop as the trainer makes them."""
    for _ in range(updates):
        for result in loop.chunks(batch_for(loop.session.micro_step)):
            (scale * result.loss).backward()
        for parameter in loop.session.parameters().values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        liveness.note(rate)
        for group in loop.optimizer.param_groups:
            group["lr"] = rate
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        loop.session.updated()


@pytest.mark.parametrize(("recipe", "adapter"), [*((r, "lora") for r in RECIPES), *(("sft", a) for a in ADAPTERS)])
def test_no_recipe_raises_an_alarm(recipe, adapter):
    """They draw from few prompts, meet empty masks, ask in some steps only, and have parts of their own."""
    with looping(recipe, adapter) as loop, watched(loop) as liveness:
        advance(loop, liveness, UPDATES)
        before = {name: p.detach().clone() for name, p in loop.session.parameters().items()}
        told = liveness.check()
        assert all(torch.equal(p, before[name]) for name, p in loop.session.parameters().items())
        assert told is None
        assert liveness.check(last=True) is None
        assert liveness._handle.id not in loop.model.transformer._forward_hooks


@contextmanager
def damaged(loop, module, hook):
    """A forward hook on a part of the network."""
    handle = loop.model.transformer.get_submodule(module).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def cut(module, args, output):
    return output.detach()


def cut_both(module, args, output):
    return tuple(each.detach() for each in output)


def test_a_layer_whose_path_to_the_loss_is_cut_stops_the_run_and_is_named():
    with looping("sft") as loop, watched(loop) as liveness, damaged(loop, "transformer_blocks.0.attn.to_q", cut):
        advance(loop, liveness, UPDATES)
        with pytest.raises(TrainingError) as found:
            liveness.check()
    assert "2 of 36 trained tensors (`transformer_blocks.0.attn.to_q.lora_A.weight`" in str(found.value)
    assert "the prediction depends on them" in str(found.value) and "target_modules" in str(found.value)


@pytest.mark.parametrize("adapter", ["loha", "lycoris_lokr"])
def test_a_block_that_is_cut_is_told_by_its_layers(adapter):
    with looping("sft", adapter) as loop, watched(loop) as liveness, damaged(loop, "transformer_blocks.0", cut_both):
        advance(loop, liveness, UPDATES)
        with pytest.raises(TrainingError) as found:
            liveness.check()
        dead = [name for name in loop.session.parameters() if "transformer_blocks" in name and "0" in name]
    assert f"({', '.join(f'`{name}`' for name in dead[:1])}" in str(found.value)
    assert "blocks_1" not in str(found.value) and "blocks.1" not in str(found.value)


def test_a_layer_that_the_network_does_not_use_is_a_warning():
    """Its output is multiplied by 0 for good, as that of an expert that gets no token."""

    def unused(module, args, output):
        return output * 0

    with looping("sft") as loop, watched(loop) as liveness, damaged(loop, "transformer_blocks.0.attn.to_v", unused):
        advance(loop, liveness, UPDATES)
        told = liveness.check()
    assert "2 of 36 trained tensors (`transformer_blocks.0.attn.to_v.lora_A.weight`" in told
    assert "an expert without tokens" in told


def test_tensors_that_a_hook_freezes_stop_the_run():
    with looping("sft") as loop, watched(loop) as liveness:
        frozen = list(loop.session.parameters())[3]
        loop.session.parameters()[frozen].requires_grad_(False)
        try:
            advance(loop, liveness, UPDATES)
            with pytest.raises(TrainingError, match="became frozen") as found:
                liveness.check()
        finally:
            loop.session.parameters()[frozen].requires_grad_(True)
    assert f"1 of 36 trained tensors (`{frozen}`)" in str(found.value)


def test_a_loss_without_a_gradient_stops_the_run():
    with looping("sft") as loop, watched(loop) as liveness:
        advance(loop, liveness, UPDATES, scale=0.0)
        with pytest.raises(TrainingError, match="no gradient but 0 came to 36 of 36") as found:
            liveness.check()
    assert "masks that are black everywhere" in str(found.value)


def test_rollouts_whose_rewards_are_all_alike_are_a_warning():
    with looping("flow_grpo") as loop, watched(loop) as liveness:
        advance(loop, liveness, UPDATES, scale=0.0)
        assert "all samples of a group get one reward" in liveness.check()


def test_a_rate_that_moves_nothing_stops_the_run():
    with looping("sft") as loop, watched(loop) as liveness:
        loop.optimizer.param_groups[0]["weight_decay"] = 0
        advance(loop, liveness, UPDATES, rate=1e-60)
        with pytest.raises(TrainingError, match="no weight moved in 3 updates"):
            liveness.check()


def test_an_adapter_of_no_strength_stops_the_run():
    """It moves by weight decay alone, and gradients come through a loss on the weights themselves."""
    with looping("sft") as loop, watched(loop) as liveness:
        for layer in loop.session.adapter.layers:
            layer.scaling[loop.session.adapter.name] = 0.0
        for _ in range(UPDATES):
            (loop.session.step(batch_for(0)).loss).backward()
            for p in loop.session.parameters().values():
                p.grad = p.detach() + 1
            liveness.note(1.0)
            loop.optimizer.step()
        with pytest.raises(TrainingError, match="the same with it and without it"):
            liveness.check()


def test_steps_of_rate_0_do_not_count_and_a_run_of_them_alone_is_stopped():
    with looping("sft") as loop, watched(loop) as liveness:
        advance(loop, liveness, UPDATES, rate=0.0)
        assert liveness.check() is None
        with pytest.raises(TrainingError, match="the learning rate was 0 in every step"):
            liveness.check(last=True)
    with looping("sft") as loop, watched(loop, begins=False) as liveness:
        assert liveness.check(last=True) is None


def test_updates_that_a_loss_scaler_skips_do_not_count():
    with looping("sft") as loop, watched(loop) as liveness:
        step, loop.optimizer.step = loop.optimizer.step, lambda: None
        advance(loop, liveness, UPDATES, scale=float("inf"))
        assert liveness.check() is None
        loop.optimizer.step = step
        advance(loop, liveness, UPDATES - 1)
        assert liveness.check() is None and not liveness._done
        advance(loop, liveness, 1)
        assert liveness.check() is None and liveness._done


def test_a_run_whose_first_rollouts_say_nothing_is_watched_on():
    """When the first gradient comes, A of a LoRA has none yet."""
    with looping("flow_grpo") as loop, watched(loop) as liveness:
        advance(loop, liveness, UPDATES, scale=0.0)
        assert "all samples of a group get one reward" in liveness.check()
        advance(loop, liveness, 1)
        assert liveness.check() is None
        advance(loop, liveness, UPDATES)
        assert liveness.check() is None and liveness._done


def test_a_run_of_few_steps_is_judged_mildly():
    """A matrix A of a LoRA has no gradient in its first step, and one batch may have an empty mask."""
    with looping("sft") as loop, watched(loop) as liveness:
        advance(loop, liveness, 1)
        assert liveness.check() is None and liveness.check(last=True) is None
    with looping("sft") as loop, watched(loop) as liveness:
        advance(loop, liveness, 1, scale=0.0)
        assert "no gradient but 0 came to 36 of 36" in liveness.check(last=True)
