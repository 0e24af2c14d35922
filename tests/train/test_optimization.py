from __future__ import annotations

import pytest
import torch
from torch import nn

from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError
from flowhooks.train.guard import FiniteGuard
from flowhooks.train.optimization import Optimization, make_optimizer


def run_with(tmp_path, **training):
    return resolve_run({"hooks": [], "training": training}, tmp_path / "run.json")


def one_step(optimization, loss):
    guard = FiniteGuard()
    guard.loss(loss, 0, ("a.png",))
    optimization.backward(loss)
    return optimization.step(guard), guard


@pytest.mark.parametrize(
    "training, where, what",
    [
        ({"optimizer": "torch.optim:Adam2"}, r"\$\.training\.optimizer: ", "Adam2"),
        ({"optimizer": "no_such_package:Adam"}, r"\$\.training\.optimizer: ", "no_such_package"),
        ({"optimizer_args": {"weight_decoy": 0.1}}, r"\$\.training\.optimizer_args: ", "weight_decoy"),
        ({"optimizer_args": {"betas": [2.0, 0.9]}}, r"\$\.training\.optimizer_args: ", "beta"),
    ],
)
def test_an_optimiser_that_cannot_be_built_is_named_with_its_place(tmp_path, training, where, what):
    with pytest.raises(ConfigError, match=where) as found:
        make_optimizer(run_with(tmp_path, **training), [nn.Parameter(torch.zeros(1))])
    assert what in str(found.value)


def test_an_import_path_gives_that_class(tmp_path):
    run = run_with(tmp_path, optimizer="torch.optim:SGD", optimizer_args={"momentum": 0.5}, learning_rate=0.25)
    made = make_optimizer(run, [nn.Parameter(torch.zeros(1))])
    assert isinstance(made, torch.optim.SGD)
    assert made.defaults["momentum"] == 0.5 and made.defaults["lr"] == 0.25


def test_the_update_is_that_of_torch(tmp_path):
    ours, theirs = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimization = Optimization(run_with(tmp_path, learning_rate=0.1, max_grad_norm=0.5), [ours])
    reference = torch.optim.AdamW([theirs], lr=0.1)
    for _ in range(3):
        norm, _ = one_step(optimization, (3 * ours).square().sum())
        (3 * theirs).square().sum().backward()
        expected = nn.utils.clip_grad_norm_([theirs], 0.5)
        reference.step()
        reference.zero_grad()
        assert torch.equal(norm, expected)
    assert torch.equal(ours, theirs) and ours.grad is None


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path, clip, poison):
    weights = nn.Parameter(torch.ones(3))
    optimization = Optimization(run_with(tmp_path, max_grad_norm=clip, optimizer="torch.optim:SGD"), [weights])
    one_step(optimization, (weights * torch.tensor([1.0, poison, 1.0])).sum())
    assert torch.equal(weights.detach(), torch.ones(3))


def test_a_state_goes_on_where_it_was(tmp_path):
    run = run_with(tmp_path, lr_scheduler="cosine", lr_warmup_steps=2, max_train_steps=8, learning_rate=0.1)
    straight = nn.Parameter(torch.ones(2))
    whole = Optimization(run, [straight])
    for _ in range(6):
        one_step(whole, straight.square().sum())

    first = nn.Parameter(torch.ones(2))
    before = Optimization(run, [first])
    for _ in range(3):
        one_step(before, first.square().sum())
    second = nn.Parameter(first.detach().clone())
    after = Optimization(run, [second])
    after.load_state_dict(before.state_dict())
    for _ in range(3):
        one_step(after, second.square().sum())
    assert torch.equal(second, straight) and after.learning_rate == whole.learning_rate


def test_a_parameter_no_loss_touched_is_treated_as_on_several_processes(tmp_path):
    used, idle = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimization = Optimization(run_with(tmp_path), [used, idle])
    one_step(optimization, used.sum())
    assert set(optimization.state_dict()["optimizer"]["state"]) == {0, 1}
