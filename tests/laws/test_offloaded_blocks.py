"""The laws over a network whose blocks live on the host: a few recipes, and the assertions of all others."""

from __future__ import annotations

import pytest
import torch

from flowhooks.probe.offloading import BlockOffload
from flowhooks.probe.recomputing import gradient_checkpointing
from tests.laws import cases, test_laws

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def offloaded():
    """A tiny SD3 with its blocks on the host as long as these tests run; hooks come and go."""
    model = cases.tiny_model()
    model.transformer.requires_grad_(False)
    with BlockOffload(model.transformer, torch.device("cpu")).open(), gradient_checkpointing(model.transformer, True):
        yield model


@pytest.fixture(autouse=True)
def _over_it(monkeypatch, offloaded):
    # Pipelines that a test makes for itself are stock ones.
    monkeypatch.setattr(test_laws, "shared_model", lambda: offloaded)
    monkeypatch.setattr(cases, "shared_model", lambda: offloaded)


@pytest.mark.parametrize(
    "recipe", ["masked_flow_dpo", "self_flow_ema", "anyflow_on_policy", "flow_opd", "adjoint_full", "twin_flow_branch"]
)
def test_a_step_is_the_same_to_the_bit(recipe, offloaded):
    found = []
    for model in (cases.tiny_model(), offloaded):
        with cases.looping(recipe, model=model) as loop:
            loop.advance(1)
            found.append((loop.losses, loop.state()["weights"]))
    (losses, weights), (theirs, others) = found
    assert all(map(torch.equal, losses, theirs)) and len(losses) == len(theirs)
    assert all(torch.equal(each, others[name]) for name, each in weights.items())


@pytest.mark.parametrize(
    ("recipe", "adapter", "failing"), [("masked_flow_dpo", "lycoris_lokr", False), ("anyflow_on_policy", "lora", True)]
)
def test_law_1(recipe, adapter, failing):
    test_laws.test_law_1_attach_then_detach_is_the_identity(recipe, adapter, failing)


def test_law_2():
    test_laws.test_law_2_a_resumed_run_equals_an_uninterrupted_one("flow_dpo_ema_anchor", "lora")


def test_law_3():
    zeroed = [cases.DPO, cases.MASK, {**cases.ANCHOR, "weight": 0}]
    test_laws.test_law_3_a_weight_of_zero_changes_no_bit([cases.DPO, cases.MASK], zeroed)


def test_law_4():
    test_laws.test_law_4_the_order_in_json_changes_no_bit()


def test_law_5():
    test_laws.test_law_5_forwards_equal_the_distinct_pairs("flow_opd")


def test_law_6(tmp_path):
    test_laws.test_law_6_what_is_trainable_moves_and_survives("masked_flow_dpo", "lokr", tmp_path)


def test_law_7():
    test_laws.test_law_7_the_losses_of_two_methods_are_in_the_total()


def test_law_8():
    test_laws.test_law_8_no_host_sync_unless_logged("masked_flow_dpo")
