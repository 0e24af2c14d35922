"""Flow maps on the analytic Gaussian flow: targets against closed forms, and a small network that learns the map."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from flowhooks.hooks import IntervalTimes, TargetReplacer, TimestepSchedule
from flowhooks.hooks.flow_maps import (
    balanced,
    expand_as_batch,
    flow_map_target,
    guided,
    rollout_target,
    shortcut_target,
    sigma_weight,
)
from flowhooks.hooks.interval_times.hook import DIFFUSION, FREE, TO_DATA, branches, mixture, uniform_ends
from flowhooks.kernel.random import Draws
from flowhooks.kernel.session import Session
from flowhooks.kernel.view import Batch
from flowhooks.testing import GaussianFlow, NoCondition
from tests.hooks.toy import EVERYTHING, AffineMap, build_assembly

FLOW = GaussianFlow(mean=0.8, std=0.3)


def exact(x, t, r):
    """The average velocity from t to r, in closed form; the velocity itself where r is None."""
    if r is None:
        return FLOW.velocity(x, expand_as_batch(t, x))
    return (x - FLOW.flow_map(x, expand_as_batch(t, x), expand_as_batch(r, x))) / expand_as_batch(t - r, x)


def states(count: int = 64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    t = 0.05 + 0.95 * torch.rand(count, generator=generator, dtype=torch.float64)
    r = t * 0.95 * torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64), t, r


def test_the_flow_map_target_of_the_exact_map_is_the_exact_map():
    x, t, r = states()
    found = flow_map_target(exact, exact(x, t, None), x, t, r, h=1e-4)
    torch.testing.assert_close(found, exact(x, t, r), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("t", "r"), [(1.0, 0.2), (0.503, 0.5), (1.0, 0.999)])
def test_differences_stay_inside_the_interval(t, r):
    x, t, r = torch.ones(1, 1), torch.tensor([t]), torch.tensor([r])
    asked = []
    flow_map_target(lambda x, s, e: asked.append(s) or x, x, x, t, r, h=0.005)
    later, earlier = asked[0]
    assert r <= earlier < t or earlier == r
    assert t <= later <= 1 and later > earlier


def test_one_teacher_step_knows_nothing_of_the_end():
    x, t, r = states()
    one = [rollout_target(exact, x, t, end, 1) for end in (r, r / 2)]
    torch.testing.assert_close(one[0], one[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(one[0], exact(x, t, None), atol=1e-12, rtol=0)
    errors = [(rollout_target(exact, x, t, r, steps) - exact(x, t, r)).abs().mean() for steps in (1, 8, 32, 128)]
    assert all(later < earlier for earlier, later in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.05 * errors[0]


def test_two_exact_half_steps_are_the_exact_step():
    x, t, r = states()
    torch.testing.assert_close(shortcut_target(exact, x, t, r), exact(x, t, r), atol=1e-12, rtol=0)


def test_guidance_is_fused_into_the_target():
    target, null, u = (torch.randn(2, 3, dtype=torch.float64) for _ in range(3))
    conditional = (u - (1 - 4.0) * null) / 4.0
    torch.testing.assert_close(u - guided(target, null, 4.0), 4.0 * (conditional - target))


def test_sigma_weight_is_one_on_average():
    t = (torch.arange(100_000) + 0.5) / 100_000
    assert float(sigma_weight(t).mean()) == pytest.approx(1, abs=1e-4)


def test_branches_are_brought_to_the_level_of_the_first():
    loss, branch = torch.tensor([2.0, 4.0, 6.0, 12.0]), torch.tensor([0, 0, 1, 2])
    assert balanced(loss, branch, 0.1, lambda t: t).tolist() == pytest.approx([1, 1, 0.5, 0.25])


def test_a_first_branch_without_loss_does_not_silence_the_others():
    loss, branch = torch.tensor([0.0, 0.0, 6.0, 12.0]), torch.tensor([0, 0, 1, 2])
    assert balanced(loss, branch, 0.1, lambda t: t).tolist() == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert balanced(loss[2:], branch[2:], 0.1, lambda t: t).tolist() == [1, 1]


def test_intervals_end_below_their_start():
    t, u = torch.tensor([1.0, 0.5, 0.01]), torch.tensor([0.999, 0.5, 0.999])
    r = uniform_ends(t, u, 0.02)
    assert bool((r < t).all()) and bool((r >= 0).all()) and float(r[2]) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_branch_shares_hold_on_average_at_any_batch_size(size):
    counts, steps = torch.zeros(3), 4000
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        drawn = branches(
            size, 0.5, 0.25, torch.rand((), generator=generator), torch.randperm(size, generator=generator)
        )
        counts += torch.bincount(drawn, minlength=3)
    shares = counts / counts.sum()
    assert shares.tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.03)


def test_processes_draw_one_mixture_together():
    whole = mixture(8, Draws(seed=1, micro_step=5), (0.5, 0.25), 3.0, (0.0, 1.0))
    halves = [
        mixture(4, Draws(seed=1, micro_step=5, rank=k, world_size=2), (0.5, 0.25), 3.0, (0.0, 1.0)) for k in (0, 1)
    ]
    for i in (0, 1):
        assert torch.equal(whole[i], torch.cat([half[i] for half in halves]))
    assert whole[2] == halves[0][2] + tuple(4 + i for i in halves[1][2])
    t, r, rows = whole
    assert [i for i in range(8) if r[i] < t[i]] == list(rows)
    assert {DIFFUSION, TO_DATA, FREE} == set(branches(8, 0.5, 0.25, torch.tensor(0.3), torch.arange(8)).tolist())


class Map(AffineMap):
    """The engine's model of ``u``; its reference is the exact velocity."""

    def __init__(self):
        super().__init__()
        self.exact = False

    def predict(self, noisy, sigma, condition, *, r_sigma=None):
        if self.exact:
            return exact(noisy, sigma, None)
        return self(noisy, sigma, sigma if r_sigma is None else r_sigma)

    @contextmanager
    def reference(self):
        self.exact = True
        try:
            yield
        finally:
            self.exact = False


def session_of(model: Map, *hooks) -> Session:
    return Session(
        model=model,
        assembly=build_assembly(hooks, EVERYTHING, "test"),
        roles={"reference": model.reference},
        parameters=dict(model.named_parameters()),
    )


def learnt(*hooks, steps: int = 600) -> tuple[float, list[dict]]:
    """RMS error of the trained map on a grid of (t, r), relative to the map's own RMS, and the logged metrics."""
    model = Map()
    session = session_of(model, *hooks)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    logged = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        clean = FLOW.mean + FLOW.std * torch.randn(64, 4, generator=generator)
        result = session.step(Batch(clean=clean, condition=NoCondition(64)), log=step % 200 == 0)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        schedule.step()
        if result.metrics:
            logged.append({name: float(value) for name, value in result.metrics.items()})
    wrong = size = 0.0
    for t in (0.2, 0.4, 0.6, 0.8, 1.0):
        for r in (0.0, 0.25, 0.5, 0.75):
            if r < t:
                times = torch.full((512,), t), torch.full((512,), r)
                noise = torch.randn(512, 4, generator=torch.Generator().manual_seed(1))
                x = (1 - t) * FLOW.mean + FLOW.variance(torch.tensor(t)).sqrt() * noise
                with torch.no_grad():
                    mine = x - (t - r) * model(x, *times)
                true = FLOW.flow_map(x, torch.tensor(t), torch.tensor(r))
                wrong += float((mine - true).square().mean())
                size += float(true.square().mean())
    return (wrong / size) ** 0.5, logged


def test_flow_map_learns_the_exact_map():
    error, logged = learnt(
        TargetReplacer(target_mode="flow_map", velocity="reference"),
        IntervalTimes(r_timestep_sampler="mixture"),
        steps=3000,
    )
    assert error < 0.02
    assert logged[-1]["anyflow_r_sensitivity"] > 0.01


def test_a_one_step_teacher_learns_no_map():
    schedule = TimestepSchedule(weighting_scheme="none", shift=1.0)
    error, logged = learnt(TargetReplacer(teacher_rollout_steps=1), IntervalTimes(), schedule)
    assert error > 0.1
    assert all(each["anyflow_r_sensitivity"] == 0 for each in logged)


def test_a_teacher_of_many_steps_learns_it():
    schedule = TimestepSchedule(weighting_scheme="none", shift=1.0)
    error, logged = learnt(TargetReplacer(teacher_rollout_steps=8), IntervalTimes(), schedule, steps=800)
    assert error < 0.08
    assert logged[-1]["anyflow_r_sensitivity"] > 0.01


def test_empty_intervals_cost_no_difference():
    model, asked = Map(), []
    predict = model.predict
    model.predict = lambda noisy, *rest, **named: asked.append(len(noisy)) or predict(noisy, *rest, **named)
    hooks = TargetReplacer(target_mode="flow_map"), IntervalTimes(r_timestep_sampler="mixture")
    session = session_of(model, *hooks)
    for size in (1, 4):
        for _ in range(8):
            asked.clear()
            clean = torch.randn(size, 4)
            result = session.step(Batch(clean=clean, condition=NoCondition(size)), log=False)
            wide = (sum(asked) - size) // 2
            assert asked in ([size], [size, 2 * wide], [2 * wide, size]) and wide <= size
            assert result.passes == len(asked) == 1 + bool(wide)
            assert size == 1 or wide == size // 2
