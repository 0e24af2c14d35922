"""TwinFlow: target and signs on the analytic flow, and networks that learn from them."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from flowhooks.hooks import IntervalTimes, TargetReplacer, TwinFlow, TwinFlowTarget
from flowhooks.hooks.distribution_matching.dmd import dmd_surrogate
from flowhooks.hooks.flow_maps import expand_as_batch
from flowhooks.hooks.twin_flow_target.trajectories import bounded, branch_difference, enhanced, residual
from flowhooks.hooks.weight_average.hook import WeightAverage
from flowhooks.kernel.session import Session
from flowhooks.kernel.view import Batch
from flowhooks.testing import GaussianFlow, NoCondition
from tests.hooks.test_distribution_matching import noised, spread
from tests.hooks.test_flow_maps import FLOW, exact, states
from tests.hooks.toy import EVERYTHING, assert_descends_to_data, build_assembly, targeted


def smooth(x, t, r):
    """Some field that depends on all it is given."""
    return torch.sin(x) * expand_as_batch(t, x) + expand_as_batch(r * r, x) - 0.3 * x


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_exact_map_leaves_no_residual(order):
    x, t, r = states()
    r = r.clamp(max=t - 0.02)
    for step, most in ((1e-2, 0.1), (1e-4, 1e-3)):
        found = residual(exact, exact(x, t, r), exact(x, t, None), x, t, r, order=order, step=step)
        assert float(found.abs().mean()) < most


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_residual_is_that_of_walking_row_by_row(order):
    x, t, r = states(12)
    t[0], t[1] = r[0] + 0.004, r[1] + 1e-4
    velocity, student = torch.cos(x), 0.2 * x + 1
    found = residual(smooth, student, velocity, x, t, r, order=order, step=0.01)
    for i in range(len(x)):
        d = min(0.01, float(t[i] - r[i]))
        grid = torch.linspace(float(t[i]) - d, float(r[i]), order + 1, dtype=torch.float64)
        here = x[i : i + 1] - d * velocity[i]
        for k in range(order):
            here = here - (grid[k] - grid[k + 1]) * smooth(here, grid[k : k + 1], grid[k + 1 : k + 2])
        walked = (x[i] - here[0]) / (t[i] - r[i])
        expected = (student[i] - walked) * (t[i] - r[i]) / d
        torch.testing.assert_close(found[i], expected, atol=1e-9, rtol=1e-9)


def test_of_order_one_it_is_the_mean_flow_identity_with_a_one_sided_difference():
    x, t, r = states()
    r = r.clamp(max=t - 0.02)
    velocity, student, d = torch.cos(x), 0.2 * x + 1, 0.01
    behind = smooth(x - d * velocity, t - d, r)
    target = velocity - expand_as_batch(t - r - d, x) * (student - behind) / d
    found = residual(smooth, student, velocity, x, t, r, order=1, step=d)
    torch.testing.assert_close(student - found, target)


def test_an_interval_within_the_first_step_asks_for_the_velocity():
    x, t, _ = states()
    velocity, student = torch.cos(x), 0.2 * x + 1
    found = residual(smooth, student, velocity, x, t, t - 0.004, order=2, step=0.01)
    torch.testing.assert_close(student - found, velocity)


def test_enhancing_settles_at_guidance():
    v, null = (torch.randn(2, 3, dtype=torch.float64) for _ in range(2))
    guided = null + (v - null) / (1 - 0.75)
    torch.testing.assert_close(enhanced(v, guided, null, 0.75), guided)


def test_bounds():
    values = torch.tensor([-3.0, 0.5, 2.0])
    assert bounded(values, 1.0).tolist() == [-1, 0.5, 1] and bounded(values, None) is values


def test_the_branches_differ_by_the_difference_of_the_scores():
    x, sigma = noised(torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    other, s = GaussianFlow(mean=-0.5, std=0.9), expand_as_batch(sigma, x)
    fake, real = (flow.velocity(x, s) for flow in (other, FLOW))
    scores = [((1 - s) * f.mean - x) / f.variance(s) for f in (other, FLOW)]
    torch.testing.assert_close(branch_difference(fake, real, None), s / (1 - s) * (scores[1] - scores[0]))


def generator_gradient(mean: float, std: float) -> tuple[float, float]:
    """Of the rectification in mean and standard deviation of Gaussian samples ``z - u``, both branches being exact."""
    z = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    m, s = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (mean, std))
    u = z - (m + s * z)
    x, sigma = noised((z - u).detach())
    fake, real = (flow.velocity(x, expand_as_batch(sigma, x)) for flow in (GaussianFlow(mean=mean, std=std), FLOW))
    dmd_surrogate(u, branch_difference(fake, real, 1.0)).mean().backward()
    return float(m.grad), float(s.grad)


def test_descent_moves_samples_to_the_data_and_stays_there():
    assert_descends_to_data(generator_gradient, FLOW)


class Signed(nn.Module):
    """``u = base v_exact(x, |t|) + a(t, r) x + b(t, r)`` from a network that sees the sign; the engine's model."""

    native_second_time = True
    sigma_range = (0.0, 1.0)

    def __init__(self, base: bool):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
        self.base = base
        if base:
            nn.init.zeros_(self.net[4].weight)
            nn.init.zeros_(self.net[4].bias)

    def predict(self, noisy, sigma, condition, *, r_sigma=None):
        times = torch.stack([sigma, sigma if r_sigma is None else r_sigma], 1)
        slope, offset = self.net(times).unsqueeze(-1).unbind(1)
        learnt = slope * noisy + offset
        return FLOW.velocity(noisy, expand_as_batch(sigma.abs(), noisy)) + learnt if self.base else learnt

    def shift(self, sample):
        return 1.0

    def seen(self, sample, condition):
        return None


def session_of(model: Signed, *hooks) -> Session:
    average = WeightAverage(decay=0.99)
    session = Session(
        model=model,
        assembly=build_assembly([*hooks, average], EVERYTHING, "test"),
        roles={},
        parameters=dict(model.named_parameters()),
    )
    # Held by the session: what is let go of detaches.
    session.attachments = ExitStack()
    session.attachments.enter_context(average.attached(session))
    average.started(session)
    return session


def learn(model: Signed, *hooks, steps: int, shape: tuple[int, int], lr: float) -> None:
    session = session_of(model, *hooks)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.0, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        clean = FLOW.mean + FLOW.std * torch.randn(shape, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        session.step(Batch(clean=clean, condition=NoCondition(len(clean))), log=False).loss.backward()
        optimizer.step()
        schedule.step()
        session.updated()


@torch.no_grad()
def error(model: Signed) -> float:
    """RMS error of the map on a grid of (t, r), relative to the map's own RMS."""
    wrong = size = 0.0
    for t, r in ((t, r) for t in (0.2, 0.4, 0.6, 0.8, 1.0) for r in (0.0, 0.25, 0.5, 0.75) if r < t):
        noise = torch.randn(512, 4, generator=torch.Generator().manual_seed(1))
        x = (1 - t) * FLOW.mean + FLOW.variance(torch.tensor(t)).sqrt() * noise
        u = model.predict(x, torch.full((512,), t), None, r_sigma=torch.full((512,), r))
        true = FLOW.flow_map(x, torch.tensor(t), torch.tensor(r))
        wrong += float((x - (t - r) * u - true).square().mean())
        size += float(true.square().mean())
    return (wrong / size) ** 0.5


def test_the_target_learns_the_exact_map():
    model = Signed(base=False)
    assert error(model) > 0.6
    learn(model, TwinFlowTarget(), IntervalTimes(r_timestep_sampler="mixture"), steps=1200, shape=(128, 4), lr=3e-3)
    assert error(model) < 0.08


def test_the_branches_alone_teach_one_step_samples_where_data_is():
    """From a place beside the data to its mean and its spread; nothing else trains intervals."""
    model = Signed(base=True)
    with torch.no_grad():
        model.net[4].bias.copy_(torch.tensor([-0.6, 0.4]))
    mean, std = spread(model, 1)
    assert abs(mean - FLOW.mean) > 0.3 and std > FLOW.std + 0.2
    velocity = IntervalTimes(r_timestep_sampler="mixture", diffusion_ratio=1.0, zero_ratio=0.0)
    learn(model, TwinFlow(), TargetReplacer(target_mode="linear"), velocity, steps=1000, shape=(64, 16), lr=2e-3)
    assert spread(model, 1) == pytest.approx((FLOW.mean, FLOW.std), abs=0.07)


def test_target_and_branches_together():
    model = Signed(base=True)
    assert error(model) > 0.15 and spread(model, 1)[1] < 0.01
    hooks = TwinFlow(), TwinFlowTarget(), IntervalTimes(r_timestep_sampler="mixture")
    learn(model, *hooks, steps=1000, shape=(64, 16), lr=4e-3)
    assert error(model) < 0.08
    for jumps in (1, 2):
        assert spread(model, jumps) == pytest.approx((FLOW.mean, FLOW.std), abs=0.1)


def test_what_is_asked_of_whom():
    """Sample, negative branch, then both branches at one state, the sign of sigma and of the interval's end alike."""
    model, asked = Signed(base=True), []
    predict = model.predict

    def recorded(noisy, sigma, condition, *, r_sigma=None):
        asked.append((len(noisy), sigma, r_sigma, torch.is_grad_enabled()))
        return predict(noisy, sigma, condition, r_sigma=r_sigma)

    model.predict = recorded
    batch = Batch(clean=torch.randn(4, 16), condition=NoCondition(4))
    times = IntervalTimes(r_timestep_sampler="mixture", diffusion_ratio=1.0, zero_ratio=0.0)
    session = session_of(model, TwinFlow(), TargetReplacer(target_mode="linear"), times)
    result = session.step(batch)
    main, drawn, fake, both = asked
    assert result.passes == len(asked)
    assert bool((drawn[1] == 1).all()) and bool((drawn[2] == 0).all())
    assert bool((fake[1] < 0).all()) and torch.equal(fake[1], fake[2])
    assert both[0] == 8 and torch.equal(both[1][:4], -both[1][4:]) and torch.equal(both[1], both[2])
    assert bool((both[1][:4] > 0).all())
    assert [each[3] for each in asked] == [True, True, True, False]
    assert {"twin_flow_gap", "twin_flow_adversarial_loss", "twin_flow_rectification_loss"} <= set(result.metrics)
    asked.clear()
    hooks = TwinFlow(rectification_weight=0.0), TargetReplacer(target_mode="linear"), times
    result = session_of(model, *hooks).step(batch)
    assert result.passes == len(asked) == 3 and "twin_flow_rectification_loss" not in result.metrics
    assert [each[3] for each in asked] == [True, False, True]


def test_only_rows_with_an_interval_are_walked():
    model, asked = Signed(base=True), []
    predict = model.predict
    model.predict = lambda noisy, *rest, **named: asked.append(len(noisy)) or predict(noisy, *rest, **named)
    session = session_of(model, TwinFlowTarget(estimate_order=3), IntervalTimes(r_timestep_sampler="mixture"))
    result = session.step(Batch(clean=torch.randn(4, 16), condition=NoCondition(4)))
    assert asked == [4, 2, 2, 2, 2] and result.passes == 5
    assert 0 <= float(result.metrics["twin_flow_clamped"]) <= 1 and float(result.metrics["twin_flow_residual"]) > 0
    found, _ = targeted(session, Batch(clean=torch.randn(4, 16), condition=NoCondition(4)))
    view, away = found["view"], (found["target"] - found["student"]).detach().abs()
    plain = [i for i in range(4) if i not in view.time.rows]
    assert torch.equal(found["target"][plain], view.velocity[plain])
    assert float(away[list(view.time.rows)].max()) <= 1 + 1e-6
