"""The laws over a base of eight bits: a few recipes of each law, the networks and assertions those of all others."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from flowhooks.quantization.convert import quantize
from flowhooks.quantization.settings import configuration
from flowhooks.quantization.table import SHORT
from tests.laws import cases, test_laws

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HOOKED = "masked_flow_dpo"
SECOND_TIME, TWO_LEVELS = "anyflow_teacher", "flow_dpo_self_flow_ema"


def int8_model():
    model = cases.learnt("sd3")
    quantize(model.transformer, configuration(SHORT["int8"], "diffusers", torch.float32), torch.device("cpu"))
    return model


@cache
def shared_int8_model():
    return int8_model()


@cache
def first_picture():
    return test_laws.picture(int8_model().pipe)


@pytest.fixture(autouse=True)
def _over_int8(monkeypatch):
    for module in (cases, test_laws):
        monkeypatch.setattr(module, "shared_model", shared_int8_model)
        monkeypatch.setattr(module, "tiny_model", int8_model)
    monkeypatch.setattr(test_laws, "first_picture", first_picture)


@pytest.mark.parametrize("adapter", ["lora", "lokr", "lycoris_lokr"])
def test_law_1(adapter):
    test_laws.test_law_1_attach_then_detach_is_the_identity(HOOKED, adapter, False)


@pytest.mark.parametrize("recipe", [SECOND_TIME, TWO_LEVELS])
def test_law_1_with_what_hooks_attach(recipe):
    test_laws.test_law_1_attach_then_detach_is_the_identity(recipe, "lora", True)


@pytest.mark.parametrize("recipe", [SECOND_TIME, "flow_dpo_ema_anchor"])
def test_law_2(recipe):
    test_laws.test_law_2_a_resumed_run_equals_an_uninterrupted_one(recipe, "lora")


def test_law_3():
    zeroed = [cases.DPO, cases.MASK, {**cases.ANCHOR, "weight": 0}]
    test_laws.test_law_3_a_weight_of_zero_changes_no_bit([cases.DPO, cases.MASK], zeroed)


def test_law_4():
    test_laws.test_law_4_the_order_in_json_changes_no_bit()


@pytest.mark.parametrize("recipe", [HOOKED, "flow_opd"])
def test_law_5(recipe):
    test_laws.test_law_5_forwards_equal_the_distinct_pairs(recipe)


@pytest.mark.parametrize(
    ("recipe", "adapter"),
    [
        *((HOOKED, adapter) for adapter in ("lora", "loha", "lokr", "lycoris_locon", "lycoris_loha", "lycoris_lokr")),
        (SECOND_TIME, "lora"),
        (TWO_LEVELS, "lora"),
        ("adjoint_matching", "lora"),
    ],
)
def test_law_6(recipe, adapter, tmp_path):
    test_laws.test_law_6_what_is_trainable_moves_and_survives(recipe, adapter, tmp_path)


def test_law_7():
    test_laws.test_law_7_the_losses_of_two_methods_are_in_the_total()


@pytest.mark.parametrize("recipe", [HOOKED, SECOND_TIME])
def test_law_8(recipe):
    test_laws.test_law_8_no_host_sync_unless_logged(recipe)
