"""AWM, DGPO and CRD: their formulas and gradients in float64, and what all objectives on scored samples share."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowhooks.hooks.awm.hook import awm_loss, weighed
from flowhooks.hooks.crd.hook import crd_loss
from flowhooks.hooks.dgpo.hook import dgpo_loss
from flowhooks.hooks.diffusion_nft.hook import nft_loss
from flowhooks.hooks.lagged_copy.hook import kept_share
from flowhooks.hooks.scored import velocity_error

GROUPS, SIZE = 2, 3
SHAPE = (GROUPS * SIZE, 2, 3, 3)
#: Of the error by the velocity: 2 (v - u) / NUMBERS.
NUMBERS = 18


def drawn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OLD, TARGET, REFERENCE = drawn(0), drawn(1), drawn(2)
SIGMA = torch.linspace(0.1, 1, GROUPS * SIZE, dtype=torch.float64)
#: Centred in each group.
ADVANTAGE = torch.tensor([1.5, -0.5, -1.0, 2.0, 0.0, -2.0], dtype=torch.float64)
GOODNESS = 0.5 + ADVANTAGE / 10


def policy_near(old: Tensor) -> Tensor:
    return (old + 0.1 * drawn(3)).requires_grad_()


def grouped(values: Tensor) -> Tensor:
    return values.reshape(GROUPS, SIZE)


def awm(policy: Tensor, old: Tensor, weighting: str = "none", clip_range: float = 1.0) -> Tensor:
    mine, theirs = (weighed(velocity_error(each, TARGET), SIGMA, weighting, 0.25) for each in (policy, old))
    return awm_loss(torch.exp(theirs - mine), ADVANTAGE, clip_range)


def dgpo(policy: Tensor, old: Tensor, reference: Tensor, beta: float = 3.0, clip_range: float = 1e-3) -> Tensor:
    errors = (grouped(velocity_error(each, TARGET)) for each in (policy, old, reference))
    return dgpo_loss(*errors, grouped(ADVANTAGE), beta, clip_range).flatten()


def crd(policy: Tensor, old: Tensor, beta: float) -> Tensor:
    gain = velocity_error(old, TARGET) - velocity_error(policy, TARGET)
    return crd_loss(grouped(gain), grouped(GOODNESS), beta).flatten()


def error(velocity: Tensor, i: int) -> float:
    return float((velocity[i].detach() - TARGET[i]).pow(2).mean())


def of_error(policy: Tensor, i: int) -> Tensor:
    """The gradient of a sample's error by its velocity."""
    return 2 * (policy[i] - TARGET[i]).detach() / NUMBERS


def assert_both(loss: Tensor, policy: Tensor, values: list[float], factors: list[float]) -> None:
    """The loss of each sample, and its gradient as a factor of that of the error."""
    torch.testing.assert_close(loss.detach(), torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-15)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    for i, factor in enumerate(factors):
        torch.testing.assert_close(gradient[i], factor * of_error(policy, i), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("weighting", ["none", "sigma", "sigma_squared", "power"])
@pytest.mark.parametrize("clip_range", [1.0, 0.001])
def test_awm_is_its_formula(weighting, clip_range):
    policy, values, factors, clipped = policy_near(OLD), [], [], 0
    for i, (s, advantage) in enumerate(zip(SIGMA.tolist(), ADVANTAGE.tolist(), strict=True)):

        def likelihood(size: float, s: float = s) -> tuple[float, float]:
            """What stands for minus its logarithm, and the slope."""
            if weighting == "power":
                return s * ((size + 1e-10) ** 0.25 - 1e-10**0.25) / 0.25, s * (size + 1e-10) ** -0.75
            slope = {"none": 1.0, "sigma": s, "sigma_squared": s * s}[weighting]
            return slope * size, slope

        (mine, slope), (theirs, _) = likelihood(error(policy, i)), likelihood(error(OLD, i))
        ratio = math.exp(theirs - mine)
        free, cut = -advantage * ratio, -advantage * min(max(ratio, 1 - clip_range), 1 + clip_range)
        values.append(max(free, cut))
        factors.append(advantage * ratio * slope if free >= cut else 0.0)
        clipped += free < cut
    assert clipped or clip_range == 1.0
    assert_both(awm(policy, OLD, weighting, clip_range), policy, values, factors)


def test_dgpo_is_its_formula_and_what_has_moved_enough_keeps_its_value_only():
    policy, beta, clip_range = policy_near(OLD), 3.0, 0.02
    values, factors, still = [], [], 0
    for i, advantage in enumerate(ADVANTAGE.tolist()):
        group = range(i - i % SIZE, i - i % SIZE + SIZE)
        total = sum(float(ADVANTAGE[j]) * (error(policy, j) - error(REFERENCE, j)) for j in group)
        weight = 1 / (1 + math.exp(-beta / SIZE * total))
        ratio = math.exp(error(OLD, i) - error(policy, i))
        enough = (advantage > 0 and ratio > 1 + clip_range) or (advantage < 0 and ratio < 1 - clip_range)
        values.append(weight * advantage * error(policy, i))
        factors.append(0.0 if enough else weight * advantage)
        still += enough
    assert 0 < still < len(values)
    assert_both(dgpo(policy, OLD, REFERENCE, beta, clip_range), policy, values, factors)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_crd_is_its_formula_with_a_mean_that_has_no_gradient(beta):
    policy, values, factors = policy_near(OLD), [], []
    for i in range(len(OLD)):
        group = range(i - i % SIZE, i - i % SIZE + SIZE)
        gains = {j: error(OLD, j) - error(policy, j) for j in group}
        centred = gains[i] - sum(gains.values()) / SIZE
        away = beta * centred - float(GOODNESS[i] - GOODNESS[list(group)].mean())
        values.append(5 / beta * away**2)
        factors.append(-10 * away)
    assert_both(crd(policy, OLD, beta), policy, values, factors)


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_first_step(beta):
    """Where policy, old model and reference are one: the losses, and one gradient for all, `mean A grad L`."""
    policy = OLD.clone().requires_grad_()
    losses = {
        "nft": 5 / beta * nft_loss(policy, OLD, TARGET, SIGMA, GOODNESS, beta, "paper").mean(),
        "awm": awm(policy, OLD).mean(),
        "dgpo": 2 * dgpo(policy, OLD, OLD).mean(),
        "crd": crd(policy, OLD, beta).mean(),
    }
    assert float(losses["awm"].detach()) == pytest.approx(-float(ADVANTAGE.mean()), abs=1e-15)
    spread = grouped(GOODNESS).var(1, correction=0).mean()
    assert float(losses["crd"].detach()) == pytest.approx(5 / beta * float(spread), rel=1e-12)
    expected = torch.stack([float(a) * of_error(OLD, i) for i, a in enumerate(ADVANTAGE)]) / len(OLD)
    for name, loss in losses.items():
        (found,) = torch.autograd.grad(loss, policy)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15, msg=name)


def test_the_loss_of_awm_at_the_start_is_minus_the_mean_advantage():
    """Also of advantages that are not centred, as where some are cut off, and whatever the weighting."""
    ratio = torch.exp(weighed(velocity_error(OLD, TARGET), SIGMA, "power", 0.25) * 0)
    advantage = ADVANTAGE + 0.7
    assert float(awm_loss(ratio, advantage, 1e-4).mean()) == pytest.approx(-0.7)


def test_gains_that_are_the_rewards_are_where_crd_rests():
    """`beta R = r + constant` of a group, whatever the constant: its loss and its gradient are 0."""
    goodness = grouped(GOODNESS)
    gain = (goodness / 0.5 + torch.tensor([[3.0], [-1.0]], dtype=torch.float64)).requires_grad_()
    loss = crd_loss(gain, goodness, 0.5)
    assert loss.abs().max() < 1e-28
    assert torch.autograd.grad(loss.sum(), gain)[0].abs().max() < 1e-13


def test_a_group_that_has_gained_weighs_less():
    """Where good samples have improved over the reference and bad ones have not, the group is done."""
    advantage = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    reference = torch.ones(1, 2, dtype=torch.float64)
    better = torch.tensor([[0.9, 1.1]], dtype=torch.float64)
    weights = [
        float(dgpo_loss(each, each, reference, advantage, 100.0, 1.0)[0, 0] / each[0, 0])
        for each in (better, reference, 2 - better)
    ]
    assert weights[0] < 1e-4 < weights[1] == 0.5 < weights[2]


def test_how_much_a_copy_keeps_that_keeps_some_from_the_start():
    assert [kept_share(n, 0.005, 0, 0.999, 0.25) for n in (0, 50, 1000)] == [0.25, 0.5, 0.999]
