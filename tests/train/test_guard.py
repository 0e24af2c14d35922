from __future__ import annotations

import pytest
import torch

from flowhooks.errors import TrainingError
from flowhooks.train.guard import FiniteGuard

GOOD, BAD = torch.tensor(1.0), torch.tensor(float("nan"))


def test_the_bad_micro_step_and_its_files_are_named_and_no_other():
    guard = FiniteGuard()
    for micro_step, loss in enumerate([GOOD, GOOD, BAD, GOOD]):
        guard.loss(loss, micro_step, (f"pictures/{micro_step}.png",))
        if micro_step % 2:
            guard.gradient(torch.tensor(micro_step == 3))
    with pytest.raises(TrainingError) as found:
        guard.check()
    assert "the loss of micro-step 2 " in str(found.value)
    assert "pictures/2.png" in str(found.value) and "pictures/1.png" not in str(found.value)


def test_a_bad_gradient_names_every_batch_of_its_step():
    guard = FiniteGuard()
    for micro_step in (4, 5):
        guard.loss(GOOD, micro_step, (f"{micro_step}.png",))
    guard.gradient(torch.tensor(True))
    with pytest.raises(TrainingError, match="the gradient of micro-step 4, 5 .*"):
        guard.check()


def test_what_was_checked_is_forgotten():
    guard = FiniteGuard()
    guard.check()
    guard.loss(GOOD, 0, ())
    guard.gradient(torch.tensor(False))
    guard.check()
    assert guard._seen == []


def test_nothing_waits_for_the_device_until_it_is_asked():
    from torch.utils._python_dispatch import TorchDispatchMode

    from flowhooks.kernel.view import StepResult
    from flowhooks.train.metrics import MetricWindow

    class Fetches(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    guard, window = FiniteGuard(), MetricWindow(every=10, last=100)
    with Fetches() as fetches:
        for micro_step in range(3):
            guard.loss(GOOD, micro_step, ())
            window.add(StepResult(loss=GOOD, metrics={}, passes=1))
            guard.gradient(guard.losses_bad())
            window.step()
        assert fetches.count == 0
        guard.check()
        window.fetch()
        assert bool(GOOD) and fetches.count > 0
