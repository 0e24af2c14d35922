"""Ratios, trust regions and advantages of Flow-GRPO and its relatives in plain arithmetic, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from flowhooks.hooks.flow_grpo.ratios import (
    beyond_clip,
    beyond_divergence,
    clipped_loss,
    compared,
    gated_loss,
)
from flowhooks.rewards.advantages import batch_advantages, decoupled_advantages, group_advantages
from flowhooks.sampling.steps import transition

STEPS = [("sde", 0.9, 0.8, "flow"), ("sde", 1.0, 0.9, "flow"), ("sde", 1.0, 0.9, "constant"), ("cps", 0.5, 0.3, "flow")]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sampled(kind: str, start: float, end: float, schedule: str, away: float = 0.1):
    """A step, the state it starts from, the noise, the sample, and the two velocities."""
    step = transition(kind, start, end, 0.4, schedule)
    x, z, before = normal(5, 3, 4), normal(5, 3, 4, seed=1), normal(5, 3, 4, seed=2)
    policy = before + away * normal(5, 3, 4, seed=3)
    return step, x, z, step.mean(x, before) + step.deviation * z, policy.requires_grad_(), before


def log_density(step, x, after, velocity) -> torch.Tensor:
    """The mean over elements of the log density of a Gaussian, by torch."""
    law = torch.distributions.Normal(step.of_state * x + step.of_velocity * velocity, step.deviation)
    return law.log_prob(after).flatten(1).mean(1)


@pytest.mark.parametrize("case", STEPS)
def test_the_plain_ratio_is_that_of_the_densities(case):
    step, x, _, after, policy, before = sampled(*case)
    found = compared(step, x, after, policy, before, "plain")
    expected = log_density(step, x, after, policy) - log_density(step, x, after, before)
    torch.testing.assert_close(found.log_ratio, expected, rtol=1e-9, atol=1e-12)
    (ours,) = torch.autograd.grad(found.log_ratio.sum(), policy, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected.sum(), policy)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", STEPS)
def test_the_divergence_is_that_of_two_gaussians(case):
    step, x, _, after, policy, before = sampled(*case)
    laws = [torch.distributions.Normal(step.mean(x, v), step.deviation) for v in (policy, before)]
    expected = torch.distributions.kl_divergence(*laws).flatten(1).mean(1)
    found = compared(step, x, after, policy, before, "plain").divergence
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, step.kl_weight * (policy - before).square().flatten(1).mean(1))


@pytest.mark.parametrize("case", STEPS)
def test_the_guarded_exponent_is_the_mean_of_the_noise_times_the_move(case):
    step, x, z, after, policy, before = sampled(*case)
    moved = step.mean(x, policy) - step.mean(x, before)
    found = compared(step, x, after, policy, before, "guarded").log_ratio
    torch.testing.assert_close(found, (z * moved).flatten(1).mean(1), rtol=1e-9, atol=1e-12)
    plain = log_density(step, x, after, policy) - log_density(step, x, after, before)
    printed = step.deviation * (plain + moved.square().flatten(1).mean(1) / (2 * step.deviation**2))
    torch.testing.assert_close(found, printed, rtol=1e-9, atol=1e-12)


def test_the_plain_exponent_is_biased_by_the_divergence_and_the_guarded_one_is_not():
    step = transition("sde", 0.8, 0.7, 0.7)
    x, before, z = normal(1, 4).expand(50_000, 4), normal(1, 4, seed=1), normal(50_000, 4, seed=2)
    policy, after = before + 0.5, step.mean(x, before) + step.deviation * z
    plain, guarded = (
        compared(step, x, after, policy.expand_as(x), before.expand_as(x), r) for r in ("plain", "guarded")
    )
    noise = float(plain.log_ratio.std()) / math.sqrt(len(x))
    assert float(plain.log_ratio.mean()) == pytest.approx(-float(plain.divergence[0]), abs=4 * noise)
    assert float(guarded.log_ratio.mean()) == pytest.approx(0, abs=4 * noise * step.deviation)
    assert float(plain.divergence[0]) > 20 * noise


@pytest.mark.parametrize("ratio", ["plain", "guarded"])
@pytest.mark.parametrize("case", STEPS)
def test_in_the_first_update_the_ratio_is_one(case, ratio):
    """And the loss -A; nothing is clipped; the gradient is that of -A log p, for guarded ratios times the deviation."""
    step, x, _, after, policy, before = sampled(*case, away=0.0)
    advantage = normal(5, seed=7)
    found = compared(step, x, after, policy, before, ratio)
    assert torch.equal(found.ratio, torch.ones_like(advantage)) and not found.divergence.any()
    size = step.deviation if ratio == "guarded" else 1.0
    (score,) = torch.autograd.grad((advantage * log_density(step, x, after, policy)).sum(), policy)
    for loss, out in (
        (clipped_loss(found.ratio, advantage, 1e-4), beyond_clip(found.ratio, advantage, 1e-4)),
        (
            gated_loss(found.ratio, advantage, found.divergence, 1e-5),
            beyond_divergence(found.ratio, advantage, found.divergence, 1e-5),
        ),
    ):
        assert torch.equal(loss, -advantage) and not out.any()
        (gradient,) = torch.autograd.grad(loss.sum(), policy, retain_graph=True)
        torch.testing.assert_close(gradient, -size * score, rtol=1e-9, atol=1e-12)


def test_clipping_stops_what_went_too_far_and_nothing_else():
    ratio = torch.tensor([1.2, 1.2, 0.8, 0.8, 1.05, 0.95], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    loss = clipped_loss(ratio, advantage, 0.1)
    assert loss.tolist() == pytest.approx([-1.1, 1.2, -0.8, 0.9, -1.05, 0.95])
    (gradient,) = torch.autograd.grad(loss.sum(), ratio)
    assert gradient.tolist() == [0, 1, -1, 0, -1, 1]
    assert beyond_clip(ratio, advantage, 0.1).tolist() == [True, False, False, True, False, False]


@pytest.mark.parametrize("divergence", [0.0, 1e-5, 1e9])
def test_a_step_back_keeps_its_gradient_at_any_divergence(divergence):
    ratio = torch.tensor([0.5, 3.0, 3.0, 0.5], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([2.0, -2.0, 2.0, -2.0], dtype=torch.float64)
    far = divergence >= 1e-5
    loss = gated_loss(ratio, advantage, torch.full_like(advantage, divergence), 1e-5)
    assert loss.tolist() == [-1.0, 6.0, *([0.0, 0.0] if far else [-6.0, 1.0])]
    (gradient,) = torch.autograd.grad(loss.sum(), ratio)
    assert gradient.tolist() == [-2, 2, *([0, 0] if far else [-2, 2])]


def gdpo(each, weights, size):
    """GDPO without its floors, in plain Python."""
    total = [0.0] * len(each[0])
    for rewards, weight in zip(each, weights, strict=True):
        for first in range(0, len(rewards), size):
            group = rewards[first : first + size]
            mean = sum(group) / size
            spread = math.sqrt(sum((r - mean) ** 2 for r in group) / size)
            for i, r in enumerate(group):
                total[first + i] += weight * (r - mean) / spread
    mean = sum(total) / len(total)
    spread = math.sqrt(sum((t - mean) ** 2 for t in total) / len(total))
    return [(t - mean) / spread for t in total]


def test_gdpo_is_the_one_in_plain_arithmetic_and_blind_to_the_range_of_a_reward():
    each, weights = [normal(12), normal(12, seed=1) ** 3], [1.0, 0.5]
    found = decoupled_advantages(each, weights, 4, 100.0, torch.Tensor.detach)
    assert found.tolist() == pytest.approx(gdpo([e.tolist() for e in each], weights, 4), rel=2e-3, abs=2e-3)
    moved = decoupled_advantages([each[0], 1000 * each[1] + 7], weights, 4, 100.0, torch.Tensor.detach)
    torch.testing.assert_close(moved, found, rtol=2e-3, atol=2e-3)
    summed = [group_advantages(each[0] + 0.5 * other, 4, 100.0) for other in (each[1], 1000 * each[1] + 7)]
    assert not torch.allclose(*summed, atol=0.1), "where rewards are summed first, the range decides"


def test_a_group_that_agrees_and_a_reward_of_no_weight_teach_nothing():
    equal, other = torch.full((8,), 3.0), normal(8).float()
    assert not decoupled_advantages([equal, other], [1.0, 0.0], 4, 5.0, torch.Tensor.detach).any()
    assert not batch_advantages(equal, 4, 5.0, torch.Tensor.detach).any()


def test_the_batch_is_that_of_all_processes():
    """Two halves that exchange their sums have the advantages of the whole."""
    each = [normal(12), normal(12, seed=1)]

    def halves(make):
        """Runs both halves side by side, as far as the next sum, until both are done."""
        sums: list[torch.Tensor] = []
        while True:
            pending, results = [], []
            for rows in (slice(0, 6), slice(6, 12)):
                known = iter(sums)

                def summed(value, known=known, pending=pending):
                    if (total := next(known, None)) is None:
                        pending.append(value)
                        raise StopIteration
                    return total

                try:
                    results.append(make(rows, summed))
                except StopIteration:
                    continue
            if not pending:
                return torch.cat(results)
            sums.append(pending[0] + pending[1])

    alone = torch.Tensor.detach
    both = halves(lambda rows, summed: decoupled_advantages([e[rows] for e in each], [1.0, 2.0], 3, 5.0, summed))
    torch.testing.assert_close(both, decoupled_advantages(each, [1.0, 2.0], 3, 5.0, alone))
    both = halves(lambda rows, summed: batch_advantages(each[0][rows], 3, 5.0, summed))
    torch.testing.assert_close(both, batch_advantages(each[0], 3, 5.0, alone))
    groups = each[0].unflatten(0, (-1, 3))
    expected = (groups - groups.mean(1, keepdim=True)) / (each[0].std(correction=0) + 1e-4)
    torch.testing.assert_close(both, expected.flatten())
