"""DiffusionNFT against its formulas in float64, and the lagged copy that plays the role ``old``."""

from __future__ import annotations

import pytest
import torch

from flowhooks.hooks.diffusion_nft.hook import nft_loss
from flowhooks.hooks.lagged_copy.hook import kept_share
from tests.families import learnt
from tests.hooks.test_ends import ENDS, attached, stepped
from tests.hooks.test_on_policy import document

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPE = (6, 2, 3, 3)


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OLD, TARGET, SIGMA = drawn(0), drawn(1), torch.linspace(0.1, 1, 6, dtype=torch.float64)
ADVANTAGE = torch.tensor([1.5, -0.5, -1.0, 2.0, 0.0, -2.0], dtype=torch.float64)
GOODNESS = 0.5 + ADVANTAGE / 10


def gradient(form: str, beta: float, goodness: torch.Tensor) -> torch.Tensor:
    """Of the mean loss by the policy's velocity, where it is the old one."""
    policy = OLD.clone().requires_grad_()
    return torch.autograd.grad(nft_loss(policy, OLD, TARGET, SIGMA, goodness, beta, form).mean(), policy)[0]


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_both_forms_are_their_formulas(beta):
    policy, rows = drawn(2), range(len(OLD))
    plus, minus = (1 - beta) * OLD + beta * policy, (1 + beta) * OLD - beta * policy

    def released(branch: torch.Tensor, i: int) -> torch.Tensor:
        away = SIGMA[i] * (TARGET[i] - branch[i])
        return 5 / beta * away.pow(2).mean() / away.abs().mean()

    paper = [
        GOODNESS[i] * (plus[i] - TARGET[i]).pow(2).mean() + (1 - GOODNESS[i]) * (minus[i] - TARGET[i]).pow(2).mean()
        for i in rows
    ]
    own = [GOODNESS[i] * released(plus, i) + (1 - GOODNESS[i]) * released(minus, i) for i in rows]
    for form, expected in (("paper", paper), ("released", own)):
        found = nft_loss(policy, OLD, TARGET, SIGMA, GOODNESS, beta, form)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-12, atol=0)


def test_the_first_step():
    """The loss of the paper is the old error, whatever the rewards; 5 / beta of its gradient is the advantage times the
    gradient of the error; the released one does not depend on beta; samples that are neither good nor bad give none."""
    error = (OLD - TARGET).square().flatten(1).mean(1)
    for beta in (1.0, 0.1):
        torch.testing.assert_close(nft_loss(OLD, OLD, TARGET, SIGMA, GOODNESS, beta, "paper"), error)
        policy = OLD.clone().requires_grad_()
        of_error = (ADVANTAGE * (policy - TARGET).square().flatten(1).mean(1)).mean()
        (expected,) = torch.autograd.grad(of_error, policy)
        torch.testing.assert_close(5 / beta * gradient("paper", beta, GOODNESS), expected)
        for form in ("paper", "released"):
            assert gradient(form, beta, torch.full_like(GOODNESS, 0.5)).abs().max() < 1e-15
    torch.testing.assert_close(gradient("released", 1.0, GOODNESS), gradient("released", 0.1, GOODNESS))


def test_the_fixed_point_is_a_shifted_gaussian():
    """Of N(m, S^2) with goodness 1/2 + k (x0 - m): the flow of N(m + 2 k S^2 / beta, S^2), at one state of a sigma."""
    mean, deviation, slope, beta, sigma, state = 0.3, 0.8, 0.05, 0.5, 0.6, 0.4
    width = (1 - sigma) ** 2 * deviation**2 + sigma**2

    def velocity(center: float) -> float:
        return (sigma - (1 - sigma) * deviation**2) / width * (state - (1 - sigma) * center) - center

    # x0 given the state is Gaussian; enough points of it for exact moments of second order.
    at = mean + (1 - sigma) * deviation**2 / width * (state - (1 - sigma) * mean)
    around = deviation * sigma / width**0.5
    clean = torch.tensor([at - around, at + around], dtype=torch.float64)
    target = ((state - (1 - sigma) * clean) / sigma - clean).reshape(2, 1)
    old = torch.full((2, 1), velocity(mean), dtype=torch.float64)
    policy = torch.tensor(velocity(mean + 2 * slope * deviation**2 / beta), dtype=torch.float64, requires_grad=True)
    goodness = 0.5 + slope * (clean - mean)
    loss = nft_loss(policy.expand(2, 1), old, target, torch.full((2,), sigma), goodness, beta, "paper").mean()
    assert abs(float(torch.autograd.grad(loss, policy)[0])) < 1e-12


def nft(**more) -> dict:
    hooks = {**ENDS, "sampled_by": "old"}, {"type": "diffusion_nft", "form": "paper"}, {"type": "lagged_copy", **more}
    return {**document(*hooks), "model": {"pipeline_arguments": {"max_sequence_length": 8}}}


@pytest.mark.parametrize("spread", ["batch", "group"])
def test_advantages_are_within_groups_over_a_spread(spread):
    run = nft()
    run["hooks"][1]["spread"] = spread
    with attached(learnt("sd3"), run) as session:
        ((step, result),) = stepped(session)
        (hook,) = (hook for hook in session.assembly.hooks if hook.type == "diffusion_nft")
        groups = step.batch.groups
        width = groups.std(1, correction=0, keepdim=True) if spread == "group" else groups.std(correction=0)
        expected = (groups - groups.mean(1, keepdim=True)) / (width + 1e-4)
        torch.testing.assert_close(hook.advantages(step), expected.flatten())
        error = (step.predict("main", "old") - step.target("main")).square().mean()
        assert float(result.loss.detach()) == pytest.approx(float(error), rel=1e-5)
        assert result.metrics["diffusion_nft_drift"] == 0 and result.metrics["diffusion_nft_gain"] == 0


def test_how_much_the_copy_keeps():
    assert [kept_share(n, 0.001, 0, 0.5) for n in (1, 400, 900)] == [0.001, 0.4, 0.5]
    assert [kept_share(n, 0.0075, 75, 0.999) for n in (75, 77, 1000)] == [0.0, 0.015, 0.999]


def test_the_copy_lags_and_plays_old():
    with attached(learnt("sd3"), nft(every=2, growth=0.25, most=0.75)) as session:
        parameter = next(iter(session.parameters().values()))
        start = parameter.detach().clone()

        def old() -> torch.Tensor:
            with session.roles["old"]():
                return parameter.detach().clone()

        held = start
        for n in range(1, 6):
            with torch.no_grad():
                parameter.add_(1.0)
            session.updated()
            if n % 2 == 0:
                kept = min(0.25 * n, 0.75)
                held = kept * held + (1 - kept) * (start + n)
            torch.testing.assert_close(old(), held)
            torch.testing.assert_close(parameter.detach(), start + n)


def test_samples_are_those_of_the_old_model():
    """A policy that has moved samples nothing: its copy, which has not, does."""
    found = []
    for moved in (0.0, 0.1):
        with attached(learnt("sd3"), nft()) as session:
            with torch.no_grad():
                for parameter in session.parameters().values():
                    parameter.add_(moved)
            ((step, result),) = stepped(session)
            found.append(step.batch.clean)
    assert torch.equal(*found) and result.metrics["diffusion_nft_drift"] > 0
