"""The laws of the house, over every recipe of hooks and every kind of adapter."""

from __future__ import annotations

import copy
import gc
import itertools
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flowhooks
from flowhooks.adapters.fit import adapter_below
from flowhooks.hooks.planning import step_cost
from flowhooks.hooks.registry import HOOKS
from flowhooks.manifest import MODULES
from flowhooks.modules_file import save_modules
from flowhooks.train.report import health_names
from tests.laws.cases import (
    ADAPTERS,
    ANCHOR,
    DPO,
    DRAWING,
    DRAWN,
    LAYERSYNC,
    MASK,
    PEFT_ONLY,
    PROJECTED,
    RECIPES,
    WALK,
    batch_for,
    looping,
    run_document,
    shared_model,
    tiny_model,
)
from tests.traces import assert_same, trace

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
everywhere = pytest.mark.parametrize(
    ("recipe", "adapter"),
    [*(("masked_flow_dpo", a) for a in ADAPTERS if a != "lora"), *((r, "lora") for r in RECIPES)],
)


def picture(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(
        "one", num_inference_steps=3, guidance_scale=2.0, output_type="pt", generator=generator, max_sequence_length=8
    ).images


@cache
def first_picture() -> torch.Tensor:
    """Of a pipeline that nothing was ever attached to."""
    return picture(tiny_model().pipe)


def test_every_hook_is_in_a_recipe():
    named = {block["type"] for blocks in RECIPES.values() for block in blocks}
    assert named == set(HOOKS)


@everywhere
@pytest.mark.parametrize("failing", [False, True], ids=["leaving", "failing"])
def test_law_1_attach_then_detach_is_the_identity(recipe, adapter, failing):
    """Also after everything else that was attached to the shared pipeline."""
    pipe = shared_model().pipe
    before = trace(pipe)
    try:
        with looping(recipe, adapter) as loop:
            loop.advance(2)
            if failing:
                raise RuntimeError("somebody's own")
    except RuntimeError:
        assert failing
    assert_same(before, trace(pipe))
    assert torch.equal(first_picture(), picture(pipe))


@everywhere
def test_law_2_a_resumed_run_equals_an_uninterrupted_one(recipe, adapter):
    with looping(recipe, adapter) as whole:
        whole.advance(2)
        saved = copy.deepcopy(whole.state())
        whole.advance(3)
        expected = whole.state()
    with looping(recipe, adapter) as second:
        second.load(saved)
        second.advance(3)
        resumed = second.state()
    for name, value in expected["weights"].items():
        assert torch.equal(value, resumed["weights"][name]), name
    assert [float(v) for v in whole.losses[-len(second.losses) :]] == [float(v) for v in second.losses]
    assert 5 * len(second.losses) == 3 * len(whole.losses)


def gradients(document: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    with flowhooks.attach(shared_model(), document) as session:
        with torch.no_grad():
            for i, p in enumerate(session.parameters().values()):
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        session.adapter.fresh = False
        loss = session.step(batch_for(0)).loss
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in session.parameters().items()}


def assert_bit_equal(a, b) -> None:
    assert torch.equal(a[0], b[0])
    assert all(torch.equal(a[1][name], b[1][name]) for name in a[1])


@pytest.mark.parametrize(
    ("plain", "zeroed"),
    [
        ([DPO, MASK], [DPO, MASK, {**ANCHOR, "weight": 0}]),
        ([], [{**ANCHOR, "weight": 0}]),
        ([], [{"type": "distribution_matching", "weight": 0}]),
        ([], [{"type": "twin_flow", "adversarial_weight": 0, "rectification_weight": 0}]),
        ([], [{**LAYERSYNC, **PROJECTED, "weight": 0}]),
        ([], [{**LAYERSYNC, "cutoff_step": 1, "warmup_steps": 1}]),
        ([{"type": "flow_dpo"}], [{"type": "flow_dpo", "sft_loss_weight": 0}]),
    ],
)
def test_law_3_a_weight_of_zero_changes_no_bit(plain, zeroed):
    documents = [{**run_document("sft", "lora"), "hooks": hooks} for hooks in (plain, zeroed)]
    assert_bit_equal(*(gradients(d) for d in documents))


def test_law_4_the_order_in_json_changes_no_bit():
    orders = [
        run_document("sft", "lora") | {"hooks": list(p)} for p in itertools.permutations([DPO, MASK, ANCHOR, WALK])
    ]
    first, *others = [gradients(d) for d in orders[::5]]
    for other in others:
        assert_bit_equal(first, other)


@pytest.mark.parametrize("recipe", RECIPES)
def test_law_5_forwards_equal_the_distinct_pairs(recipe):
    with looping(recipe) as loop:
        calls: list[int] = []
        batch = batch_for(0)
        # Before a block, as some calls end early; those that only read what a pipeline hands its network end before.
        handle = loop.model.transformer.transformer_blocks[0].register_forward_pre_hook(
            lambda m, args, kwargs: calls.append(len((*args, *kwargs.values())[0])), with_kwargs=True
        )
        passes = sum(result.passes for result in loop.chunks(batch, log=False))
        plan = loop.session.assembly.plan
        cost = step_cost(plan)
        spared = cost.forwards(len(plan.roles)) - len(calls)
        assert passes == len(calls)
        assert spared >= 0 if recipe in DRAWN else spared == 0
        if not cost.queries and not cost.rollout:
            assert sum(calls) == 2 * len(plan.passes)
        calls.clear()
        loop.session.batch_views = False
        loop.session.micro_step = 0
        expected = cost.forwards(len(plan.passes)) - spared
        assert sum(result.passes for result in loop.chunks(batch, log=False)) == len(calls) == expected
        handle.remove()
        # What a hook says its health is, a logged step tells.
        told = {name for result in loop.chunks(batch, log=True) for name in result.metrics}
        assert set(health_names(loop.session.assembly.hooks)) <= told


@everywhere
def test_law_6_what_is_trainable_moves_and_survives(recipe, adapter, tmp_path):
    from flowhooks.adapters import load_adapter

    with looping(recipe, adapter) as loop:
        before = {name: p.detach().clone() for name, p in loop.session.parameters().items()}
        loop.advance(3)
        for result in loop.chunks(batch_for(0)):
            result.loss.backward()
        for name, p in loop.session.parameters().items():
            assert p.requires_grad and p.grad is not None and p.grad.any(), name
            assert not torch.equal(before[name], p), name
        assert all(p.grad is None for p in loop.model.transformer.parameters() if not p.requires_grad)
        loop.session.adapter.save(tmp_path, {})
        save_modules(tmp_path, loop.session.assembly, loop.model, {})
        saved = {name: p.detach().clone() for name, p in loop.session.adapter.state_dict().items()}
        trained = picture(loop.model.pipe)
    model = tiny_model()
    loaded = load_adapter(model.transformer, tmp_path)
    assert all(torch.equal(saved[name], value) for name, value in loaded.state_dict().items())
    below = adapter_below(tmp_path)
    with (
        flowhooks.attach(model, tmp_path) if (tmp_path / MODULES).is_file() else nullcontext(),
        nullcontext() if below is None else flowhooks.adapter_gate(model.pipe, below),
    ):
        assert torch.equal(trained, picture(model.pipe))


def test_law_7_the_losses_of_two_methods_are_in_the_total():
    flow_map, alignment = RECIPES["anyflow_layersync"][:2], RECIPES["anyflow_layersync"][2]
    found = {}
    for name, hooks in (("both", [*flow_map, alignment]), ("one", flow_map), ("other", [alignment])):
        torch.manual_seed(0)
        with flowhooks.attach(shared_model(), {**run_document("sft", "lora"), "hooks": hooks}) as session:
            result = session.step(batch_for(0))
            found[name] = {**result.metrics, "total": float(result.loss.detach())}
    added = float(found["both"]["alignment_loss"])
    assert added > 0 and "alignment_loss" in found["other"]
    assert found["both"]["total"] == pytest.approx(found["one"]["total"] + added, rel=1e-6)


class NoSync(TorchDispatchMode):
    """Fails on every operation that makes the host wait for the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        assert name not in self.WAITING, f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe not in PEFT_ONLY | DRAWING])
def test_law_8_no_host_sync_unless_logged(recipe):
    """Adapters of PEFT's, and whole updates of the trainer, are in ``tests/train/test_waits.py``."""
    with looping(recipe, "lycoris_locon") as loop:
        loop.advance(1)
        batch = batch_for(1)
        with NoSync():
            for result in loop.chunks(batch, log=False):
                result.loss.backward()


def test_the_sync_detector_detects():
    with pytest.raises(AssertionError, match="makes the host wait"), NoSync():
        float(torch.ones(()))


def tensors_alive() -> list[torch.Tensor]:
    gc.collect()
    return [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_weights_are_held_once(adapter):
    """The reference is the same network with its adapter off: a step makes no copy of a base weight that stays
    alive."""
    model = tiny_model()
    before = {id(t) for t in tensors_alive()}
    with looping("masked_flow_dpo", adapter, model) as loop:
        loop.advance(2)
        base = [p for p in model.transformer.parameters() if not p.requires_grad and p.numel() >= 1024]
        made = [t for t in tensors_alive() if id(t) not in before]
        assert base
        for weight in base:
            twins = [t for t in made if t.shape == weight.shape and torch.equal(t, weight)]
            assert all(t.data_ptr() == weight.data_ptr() for t in twins)
