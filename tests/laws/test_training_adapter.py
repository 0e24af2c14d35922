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
from flowhooks.errors import CheckpointError
from flowhooks.probe import FlowModel
from flowhooks.probe.recomputing import gradient_checkpointing
from tests.adapters.helpers import appearance
from tests.laws.cases import Loop, batch_for, run_document, shared_model, teacher, tiny_model
from tests.laws.test_laws import assert_same, picture

#: Recipes whose every forward is one of the loss, and how far fp32 takes them from a base with the adapter fused: pairs
#: and masks; the averaged weights as a teacher of features; flow maps with a second adapter; teachers of trajectories.
RECIPES = {"masked_flow_dpo": 1e-4, "self_flow_ema": 1e-4, "anyflow_on_policy": 2e-3, "twin_flow_ema": 2e-3}


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
    with looping(document) as loop:
        loss, gradients = first_step(loop)
    with looping({**document, "adapter": {**document["adapter"], "training_adapter": None}}, fused()) as loop:
        expected, theirs = first_step(loop)
    assert torch.allclose(loss, expected, rtol=RECIPES[recipe])
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        assert (gradient - theirs[name]).norm() <= 10 * RECIPES[recipe] * theirs[name].norm() + 1e-7, name
