from __future__ import annotations

import pytest
import torch
from torch import nn

from flowhooks.checks.optimizers import NAMED, not_installed
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError
from flowhooks.train.codec import read_state, write_state
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
        ({"optimizer": "lion", "optimizer_args": {"betas": [2.0, 0.9]}}, r"\$\.training\.optimizer_args: ", "refuses"),
        ({"optimizer": "muon", "optimizer_args": {"ns_stops": 3}}, r"\$\.training\.optimizer_args: ", "ns_stops"),
    ],
)
def test_an_optimiser_that_cannot_be_built_is_named_with_its_place(tmp_path, training, where, what):
    with pytest.raises(ConfigError, match=where) as found:
        make_optimizer(run_with(tmp_path, **training), [nn.Parameter(torch.zeros(1, 1))])
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


#: Those whose packages are here; the others are refused, see tests/checks/test_optimizers.py.
HERE = [name for name in NAMED if not_installed(name) is None]


def three():
    """A matrix, another that starts at 0 as LoRA's B, and a vector."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(80, 64, generator=generator)
    return [nn.Parameter(value) for value in (first, torch.zeros(64, 80), torch.ones(7))]


def steps(optimization, first, last):
    a, b, c = optimization.parameters
    for i in range(first, last):
        x = torch.randn(5, 80, generator=torch.Generator().manual_seed(i))
        one_step(optimization, (x + x @ a @ b).square().mean() + c.square().sum())


def test_the_small_packages_are_here():
    """The development extra installs them, so that the law below runs over them."""
    assert {*HERE} >= {*NAMED} - {"adamw8bit"}


@pytest.mark.parametrize("name", HERE)
def test_every_named_optimiser_resumes_bit_for_bit_without_pickle(tmp_path, name):
    rate = 1.0 if name == "prodigy" else 1e-2
    warm = {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 2}
    run = run_with(tmp_path, optimizer=name, learning_rate=rate, **warm)
    whole, before, after = (Optimization(run, three()) for _ in range(3))
    steps(whole, 0, 6)
    steps(before, 0, 3)
    weights = [p.detach() for p in before.parameters]
    write_state(tmp_path / "state.safetensors", {"weights": weights, "optimization": before.state_dict()})
    with before.at_result():
        pass
    steps(before, 3, 6)

    read = read_state(tmp_path / "state.safetensors")
    with torch.no_grad():
        for p, value in zip(after.parameters, read["weights"], strict=True):
            p.copy_(value)
    after.load_state_dict(read["optimization"])
    steps(after, 3, 6)
    for p, start in zip(whole.parameters, three(), strict=True):
        assert torch.isfinite(p).all() and not torch.equal(p, start)
    for other in (before, after):
        assert all(torch.equal(p, q) for p, q in zip(whole.parameters, other.parameters, strict=True))


def test_a_schedule_reaches_every_part_of_muon_and_only_matrices_are_orthogonalised(tmp_path):
    run = run_with(
        tmp_path, optimizer="muon", learning_rate=0.5, lr_scheduler="linear", max_train_steps=4, max_grad_norm=None
    )
    a, b, c = three()
    d = nn.Parameter(c.detach().clone())
    optimization, alone = Optimization(run, [a, b, c]), torch.optim.AdamW([d], lr=0.5)
    assert [type(part) for part in optimization.optimizer.parts] == [torch.optim.Muon, torch.optim.AdamW]
    one_step(optimization, a.square().sum() + b.sum() + c.square().sum())
    d.square().sum().backward()
    alone.step()
    assert torch.equal(c, d)
    rates = {group["lr"] for part in optimization.optimizer.parts for group in part.param_groups}
    assert rates == {0.375}


def test_schedule_free_offers_the_average_of_its_steps_and_goes_on_from_where_it_was(tmp_path):
    run = run_with(tmp_path, optimizer="schedule_free", learning_rate=0.1, max_grad_norm=None)
    weights = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimization = Optimization(run, [weights])
    z, mean = weights.detach().clone(), weights.detach().clone()
    square = torch.zeros(2)
    for k in range(1, 5):
        # The paper's algorithm 1 with AdamW's scaling: arXiv 2405.15682.
        gradient = 2 * (0.1 * z + 0.9 * mean)
        square = 0.999 * square + 0.001 * gradient**2
        z = z - 0.1 * gradient / ((square / (1 - 0.999**k)).sqrt() + 1e-8)
        mean = (1 - 1 / k) * mean + z / k
        one_step(optimization, weights.square().sum())
    trained = weights.detach().clone()
    with optimization.at_result():
        assert torch.allclose(weights.detach(), mean, atol=1e-5) and not torch.allclose(weights.detach(), trained)
    assert torch.equal(weights.detach(), trained)


@pytest.mark.parametrize("name", NAMED)
def test_magnitudes_do_not_decay(tmp_path, name):
    matrix, magnitude = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    decay = {"adamw": {"weight_decay": 0.5}} if name == "muon" else {"weight_decay": 0.5}
    run = run_with(tmp_path, optimizer=name, optimizer_args=decay, learning_rate=0.1)
    optimization = Optimization(run, [matrix, magnitude], undecayed=[magnitude])
    for parameter in (matrix, magnitude):
        parameter.grad = torch.zeros_like(parameter)
    optimization.optimizer.step()
    assert (
        torch.equal(magnitude, torch.ones(4))
        and sum(len(g["params"]) for g in optimization.optimizer.param_groups) == 2
    )
    state = optimization.state_dict()
    again = Optimization(run, [matrix, magnitude], undecayed=[magnitude])
    again.load_state_dict(state)
