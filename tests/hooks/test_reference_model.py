"""What preference runs compare with: the base, an adapter, its own start, or the average of its weights."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch

import flowhooks
from flowhooks.adapters.names import LORA_FILE
from flowhooks.checks.planning import describe_reference, plan_run
from flowhooks.config import resolve_run
from flowhooks.errors import AdapterError, CheckpointError
from tests.laws.cases import ADAPTERS, Loop, batch_for, run_document, shared_model, teacher

#: A strength that is no power of two: another way to multiply by it rounds otherwise.
LORA = {"type": "lora", "rank": 3, "alpha": 2}
EVERYTHING = {"data:image", "data:rejected"}


@pytest.fixture(scope="module")
def model():
    return shared_model()


def trained(model, folder, adapter):
    """The file of an adapter after SFT, as a run writes it."""
    torch.manual_seed(0)
    with flowhooks.attach(model, {**run_document("sft", "lora"), "hooks": [], "adapter": adapter}) as session:
        loop = Loop(session, model)
        loop.advance(2)
        session.adapter.save(folder, {})
    return str(folder)


@pytest.fixture(scope="module")
def sft(model, tmp_path_factory):
    return trained(model, tmp_path_factory.mktemp("sft"), LORA)


@contextmanager
def preferring(model, start, reference, adapter=LORA, objective="flow_dpo", **training):
    document = run_document("sft", "lora")
    document |= {
        "adapter": {**adapter, "init_from": start},
        "hooks": [{"type": objective, "norm_type": "mean", "beta": 50.0, "reference": reference}],
        "training": {**document["training"], **training},
    }
    torch.manual_seed(0)
    with flowhooks.attach(model, document) as session:
        yield Loop(session, model)


@pytest.mark.parametrize("objective", ["flow_dpo", "ipo"])
@pytest.mark.parametrize("reference", ["init", "ema", "the file", "base"])
def test_the_first_margin_is_exactly_0_where_policy_and_reference_agree(model, sft, reference, objective):
    named = f"{sft}/{LORA_FILE}" if reference == "the file" else reference
    with preferring(model, sft, named, objective=objective, use_ema=reference == "ema") as loop:
        result = loop.session.step(batch_for(0))
    assert (result.metrics[f"{objective}_margin"] == 0) == (reference != "base")
    assert result.passes == (3 if reference == "base" else 2)


@pytest.mark.parametrize("kind", ["dora", "lokr", "lycoris_loha"])
def test_other_kinds_of_adapter_are_compared_with_their_start_too(model, tmp_path, kind):
    start = trained(model, tmp_path, ADAPTERS[kind])
    with preferring(model, start, "init", ADAPTERS[kind]) as loop:
        loop.advance(1)
        assert loop.session.step(batch_for(0)).metrics["flow_dpo_margin"] != 0
    with preferring(model, start, "init", ADAPTERS[kind]) as loop:
        assert loop.session.step(batch_for(0)).metrics["flow_dpo_margin"] == 0


def test_the_start_stands_still_and_costs_no_second_network(model, sft):
    batch = batch_for(1)
    with preferring(model, sft, "init") as loop:
        session = loop.session
        before = session.step(batch).metrics["flow_dpo_ref_win_err"]
        loop.advance(2)
        session.micro_step = 0
        assert session.step(batch).metrics["flow_dpo_ref_win_err"] == before
        kept = session.assembly.owner("objective")._model._values
        assert [v.shape for v in kept] == [p.shape for p in session.parameters().values()]
        assert all(p.requires_grad for p in session.parameters().values())
    # The base with the file, computed by another way, is the same model but for rounding.
    with preferring(model, None, sft) as loop:
        again = loop.session.step(batch).metrics["flow_dpo_ref_win_err"]
    torch.testing.assert_close(again, before, rtol=1e-5, atol=0)
    with preferring(model, sft, "base") as loop:
        base = loop.session.step(batch).metrics["flow_dpo_ref_win_err"]
    assert abs(float(base - before)) > 1e-4


@pytest.mark.parametrize("reference", ["init", "ema", "an adapter"])
def test_a_resumed_run_equals_an_uninterrupted_one(model, sft, reference):
    named = teacher() if reference == "an adapter" else reference
    with preferring(model, sft, named, use_ema=reference == "ema") as loop:
        loop.advance(1)
        saved = copy.deepcopy(loop.state())
        loop.advance(1)
        expected = loop.state()
    with preferring(model, sft, named, use_ema=reference == "ema") as loop:
        loop.load(saved)
        loop.advance(1)
        assert all(torch.equal(v, loop.state()["weights"][k]) for k, v in expected["weights"].items())


def test_another_file_in_its_place_is_noticed(model, sft, tmp_path):
    other = trained(model, tmp_path, {**LORA, "alpha": 1})
    for start, changed, named in ((sft, other, ("init", "init")), (None, None, (sft, other))):
        adapter = {**LORA, "alpha": 2}
        with preferring(model, start, named[0], adapter) as loop:
            saved = copy.deepcopy(loop.session.state_dict())
        with (
            preferring(model, changed, named[1], {**LORA, "alpha": 1} if changed else adapter) as loop,
            pytest.raises(CheckpointError, match="is not the (one|file) that the checkpoint was trained with"),
        ):
            loop.session.load_state_dict(saved)


def test_an_adapter_that_changes_nothing_is_no_reference(model, tmp_path):
    with flowhooks.attach(model, {**run_document("sft", "lora"), "hooks": [], "adapter": LORA}) as session:
        session.adapter.save(tmp_path, {})
    with pytest.raises(AdapterError, match="changes nothing"), preferring(model, None, str(tmp_path)):
        pass


@pytest.mark.parametrize(
    ("reference", "role"),
    [("base", "reference"), ("init", "adapter:init"), ("ema", "ema"), ("a/b", "adapter:reference")],
)
def test_the_anchor_of_a_method_is_to_its_reference(tmp_path, reference, role):
    document = {
        "method": {"ipo": {"reference": reference, "anchor_alpha": 0.1}},
        "adapter": {"init_from": "runs/sft"},
        "training": {"use_ema": True},
    }
    run = resolve_run(document, tmp_path / "run.json")
    assert [hook.options.get("role") for hook in run.hooks] == [None, role]
    assert {name for _, name in plan_run(run, EVERYTHING).passes} == {"policy", role}


def test_a_start_beside_the_base_is_said(tmp_path):
    def said(**options):
        document = {
            "method": {"flow_dpo": options},
            "adapter": {"init_from": "runs/sft"},
            "training": {"use_ema": True},
        }
        run = resolve_run(document, tmp_path / "run.json")
        return list(describe_reference(run, plan_run(run, EVERYTHING)))

    base, advice = said()
    assert base == "the base model, its adapter off; the policy starts from runs/sft"
    assert advice.endswith("so the first margin is not 0; `reference` 'init' compares with that adapter")
    assert said(reference="init") == ["of `flow_dpo`: runs/sft, as the policy starts from it"]
    assert said(reference="ema") == ["of `flow_dpo`: the average of the trained weights, of decay 0.999"]
    assert said(reference="a/b") == ["of `flow_dpo`: the base model with a/b"]
