"""The self-test of Flow-DPO: the policy without its adapter is the reference, or what makes it another is named."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

import flowhooks
from flowhooks.errors import TrainingError
from flowhooks.kernel.hook import Hook
from tests.laws.cases import batch_for, run_document, shared_model


class Louder(Hook):
    """Changes what the policy predicts, and takes that back for the reference only where it says so."""

    def __init__(self, *, everywhere: bool):
        self.everywhere, self.on = everywhere, False

    @contextmanager
    def attached(self, session):
        handle = session.model.transformer.register_forward_hook(self._louder)
        self.on = True
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def disabled(self):
        before, self.on = self.on, self.on and self.everywhere
        try:
            yield
        finally:
            self.on = before

    def metrics(self, step):
        return {}

    def _louder(self, module, args, output):
        return (output[0] * 1.5, *output[1:]) if self.on else output


@pytest.fixture(scope="module")
def model():
    return shared_model()


@pytest.fixture(scope="module")
def start(model, tmp_path_factory):
    """The file of an adapter that changes what the model predicts."""
    folder = tmp_path_factory.mktemp("start")
    document = {**run_document("sft", "lora"), "hooks": []}
    with flowhooks.attach(model, document) as session:
        with torch.no_grad():
            for i, p in enumerate(session.parameters().values()):
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        session.adapter.save(folder, {})
    return folder


def first_step(model, start, *hooks) -> float:
    adapter = {"type": "lora", "rank": 4, "alpha": 8, "init_from": None if start is None else str(start)}
    with flowhooks.attach(model, [*hooks], adapter=adapter) as session:
        return float(session.step(batch_for(0)).metrics["flow_dpo_margin"])


@pytest.mark.parametrize("from_a_file", [False, True])
def test_it_passes_whatever_the_policy_starts_from(model, start, from_a_file):
    margin = first_step(model, start if from_a_file else None, {"type": "flow_dpo"})
    assert (margin != 0) == from_a_file
    # What a hook changes for both is no difference between them.
    first_step(model, start if from_a_file else None, {"type": "flow_dpo"}, Louder(everywhere=True))


@pytest.mark.parametrize("from_a_file", [False, True])
def test_the_hook_that_breaks_it_is_named(model, start, from_a_file):
    with pytest.raises(TrainingError, match=r"self-test.*Louder.* changes the policy alone; take it out"):
        first_step(model, start if from_a_file else None, {"type": "flow_dpo"}, Louder(everywhere=False))
