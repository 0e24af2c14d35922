"""Sampler steps and their densities against the analytic Gaussian flow and plain Gaussian algebra, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from flowhooks.hooks.on_policy_rollout.hook import visit_weight
from flowhooks.hooks.teacher_velocity.hook import log_ratio_loss
from flowhooks.sampling.steps import Sampler, step_state, transition
from flowhooks.testing import GaussianFlow

FLOW = GaussianFlow(mean=0.5, std=0.7)
STEPS = [(0.9, 0.8), (0.5, 0.3), (0.2, 0.15)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["ode", "sde", "constant", "cps"])
def test_marginals_of_the_flow_are_kept(kind):
    """Many small steps from noise, with the exact velocity: mean and variance at every sigma are the flow's."""
    grid = torch.linspace(1, 0.02, 400, dtype=torch.float64)
    x, count = normal(20_000), 20_000
    for index, (start, end) in enumerate(zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True)):
        # So little at a time that the chance of `cps`, which is per step, adds up to something moderate.
        if kind == "constant":
            step = transition("sde", start, end, 0.7, "constant")
        else:
            step = transition(kind, start, end, 0.7 if kind == "sde" else 0.02)
        velocity = FLOW.velocity(x, torch.tensor(start, dtype=torch.float64))
        x = step_state(step, x, velocity, normal(count, seed=index + 1) if step.deviation else None)
        if index % 80 == 79:
            sigma = torch.tensor(end, dtype=torch.float64)
            variance = float(FLOW.variance(sigma))
            assert float(x.mean()) == pytest.approx((1 - end) * FLOW.mean, abs=4 * math.sqrt(variance / count) + 0.005)
            assert float(x.var()) == pytest.approx(variance, rel=0.04)


def test_the_ode_step_is_eulers():
    x, v = normal(3, 4), normal(3, 4, seed=1)
    assert torch.allclose(step_state(transition("ode", 0.7, 0.4, 0.7), x, v, None), x - 0.3 * v, atol=1e-12)


def test_sde_coefficients_are_the_printed_ones():
    start, end, level = 0.6, 0.5, 0.7
    g2 = level**2 * start / (1 - start)
    step = transition("sde", start, end, level)
    assert step.of_state == pytest.approx(1 + g2 * (end - start) / (2 * start))
    assert step.of_velocity == pytest.approx((1 + g2 * (1 - start) / (2 * start)) * (end - start))
    assert step.deviation**2 == pytest.approx(g2 * (start - end))
    first = transition("sde", 1.0, 0.9, level)
    assert first.deviation**2 == pytest.approx(level**2 / (1 - 0.9) * 0.1), "at s = 1 the next sigma stands in"


def test_constant_noise_has_the_same_mean_formula_and_is_finite_at_pure_noise():
    for start, end in ((0.6, 0.5), (1.0, 0.9), (1.0, 0.999999), (0.1, 0.05)):
        step, level = transition("sde", start, end, 0.3, "constant"), 0.3
        assert step.of_state == pytest.approx(1 + level**2 * (end - start) / (2 * start))
        assert step.of_velocity == pytest.approx((1 + level**2 * (1 - start) / (2 * start)) * (end - start))
        assert step.deviation == pytest.approx(level * math.sqrt(start - end))
        assert math.isfinite(step.kl_weight)
    first = transition("sde", 1.0, 0.9, 0.3, "constant")
    assert first.of_velocity == pytest.approx(-0.1), "of pure noise the velocity is taken as it is"
    sampler = Sampler(kind="sde", steps=10, noise_level=0.3, noise_schedule="constant")
    assert sampler.step(0, 1.0, 0.9) == first and sampler.step(9, 0.1, 0.0).deviation == 0
    weights = [visit_weight("kl", first, 0.3, 10, schedule) for schedule in ("constant", "flow")]
    assert weights[0] == pytest.approx(first.kl_weight) and weights[1] != pytest.approx(weights[0])


def test_cps_keeps_the_coefficients_of_data_and_noise():
    """Applied to ``x = (1 - s) x0 + s e`` with its own velocity, data keeps 1 - n and noise n in the root sum of
    squares."""
    x0, e = normal(5), normal(5, seed=1)
    start, end, level = 0.8, 0.5, 0.6
    step = transition("cps", start, end, level)
    mean = step.mean((1 - start) * x0 + start * e, e - x0)
    turn = level * math.pi / 2
    assert torch.allclose(mean, (1 - end) * x0 + end * math.cos(turn) * e, atol=1e-12)
    assert (end * math.cos(turn)) ** 2 + step.deviation**2 == pytest.approx(end**2)


@pytest.mark.parametrize(("start", "end"), STEPS)
def test_the_kl_weight_is_the_divergence_of_two_gaussians(start, end):
    level = 0.7
    step = transition("sde", start, end, level)
    x, v, w = normal(1, 6), normal(1, 6, seed=1), normal(1, 6, seed=2)
    ours, theirs = (torch.distributions.Normal(step.mean(x, each), step.deviation) for each in (v, w))
    exact = torch.distributions.kl_divergence(ours, theirs).sum()
    assert float(step.kl_weight * (v - w).square().sum()) == pytest.approx(float(exact), rel=1e-9)
    printed = (start - end) / 2 * (1 / level + level / 2) ** 2 * (1 - start) / start
    assert step.kl_weight == pytest.approx(printed, rel=1e-9)
    assert visit_weight("kl", step, level, 10) == pytest.approx(printed)
    assert visit_weight("kl_nodt", step, level, 10) == pytest.approx((start - end) * printed)
    assert visit_weight("x_t", step, level, 10) == pytest.approx((start - end) ** 2)
    assert visit_weight("x0", step, level, 10) == pytest.approx(start**2)
    assert visit_weight("uniform", step, level, 10) == 1
    assert visit_weight("dt", step, level, 10) == pytest.approx(10 * (start - end))


@pytest.mark.parametrize(("start", "end"), STEPS)
def test_the_log_ratio_estimator_has_the_gradient_of_the_divergence(start, end):
    """Its mean over many samples equals the gradient of the mean KL within three standard errors."""
    step, x = transition("sde", start, end, 0.7), normal(1, 4)
    student = normal(1, 4, seed=1).requires_grad_(True)
    teacher = student.detach() + 0.3 * normal(1, 4, seed=2)
    (exact,) = torch.autograd.grad(step.kl_weight * (student - teacher).square().mean(), student)
    draws = []
    for seed in range(4000):
        after = step_state(step, x, student.detach(), normal(1, 4, seed=seed + 10))
        loss = log_ratio_loss(step.log_density(x, student, after), step.log_density(x, teacher, after))
        draws.append(torch.autograd.grad(loss.sum(), student)[0])
    found = torch.stack(draws)
    error = found.std(0) / math.sqrt(len(draws))
    assert bool(((found.mean(0) - exact).abs() < 3 * error).all())


def test_a_reward_of_the_state_alone_teaches_nothing():
    """The form printed in the paper, a detached reward of the state in front of a likelihood ratio, has no gradient on
    average: the reason why it is not offered."""
    step, x = transition("sde", 0.6, 0.5, 0.7), normal(1, 4)
    student = normal(1, 4, seed=1).requires_grad_(True)
    reward = -(student.detach() - normal(1, 4, seed=2)).square().mean()
    draws = []
    for seed in range(4000):
        after = step_state(step, x, student.detach(), normal(1, 4, seed=seed + 10))
        log_prob = step.log_density(x, student, after).mean()
        draws.append(torch.autograd.grad(-reward * torch.exp(log_prob - log_prob.detach()), student)[0])
    found = torch.stack(draws)
    error = found.std(0) / math.sqrt(len(draws))
    assert bool((found.mean(0).abs() < 3 * error).all())
    assert float(found.abs().mean()) > 0.01, "every single draw pushes, only their mean does not"


def test_a_window_has_chance_and_the_rest_has_none():
    sampler = Sampler(kind="sde", steps=5, window=(1, 3))
    grid = [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    deviations = [sampler.step(i, *grid[i : i + 2]).deviation for i in range(5)]
    assert [bool(deviation) for deviation in deviations] == [False, True, True, False, False]
    assert Sampler(kind="sde", steps=5).step(4, 0.2, 0.0).deviation == 0, "a step to 0 has no density"
