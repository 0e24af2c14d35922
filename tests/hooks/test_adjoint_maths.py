"""Co-states and targets in float64, against the analytic Gaussian and against back-propagation."""

from __future__ import annotations

import math

import pytest
import torch

from flowhooks.hooks.adjoint_target import maths as adjoint
from flowhooks.testing.gaussian import GaussianFlow
from tests.hooks.adjoint_reference import hamiltonian, regularizer_cost

FLOW = GaussianFlow(mean=0.3, std=0.7)
GENTLE, GOAL, LAMBDA = 0.8, 1.5, 0.5
REGULARIZERS = [{1.5: 0.7}, {2: 3.0}, {3: 0.2}, {4: 5.0}, {2: 1.0, 4: 2.0}, {1.5: 0.1, 2: 1.0, 3: 0.5}]


def grid(steps: int) -> list[float]:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()


def base(x, sigma):
    return FLOW.velocity(x, torch.tensor(sigma, dtype=torch.float64))


def pulled(function, x, cotangent):
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf, cotangent)[0]


def reward(x):
    return -(GENTLE / 2) * (x - GOAL).square().flatten(1).sum(1)


def terminal(x):
    return -GENTLE * (x - GOAL)


def along(noise, controls, sigmas):
    states = [noise]
    for k, control in enumerate(controls):
        by = sigmas[k + 1] - sigmas[k]
        states.append(states[-1] + by * (base(states[-1], sigmas[k]) - control))
    return states


def lean_costates(states, sigmas):
    """g_0 ... g_N."""
    found = [terminal(states[-1])]
    for k in reversed(range(len(sigmas) - 1)):
        product = pulled(lambda x, k=k: base(x, sigmas[k]), states[k], found[0])
        found.insert(0, adjoint.lean(found[0], sigmas[k + 1] - sigmas[k], product))
    return found


def solved(noise, steps, pairing, rounds=400):
    """The fixed point of targets on the policy's own states, of a control that may be anything at every step."""
    sigmas = grid(steps)
    controls = [torch.zeros_like(noise) for _ in range(steps)]
    for _ in range(rounds):
        costates = lean_costates(along(noise, controls, sigmas), sigmas)
        goals = [adjoint.optimal_control(costates[k + pairing], {2: LAMBDA}) for k in range(steps)]
        controls = [0.8 * old + 0.2 * new for old, new in zip(controls, goals, strict=True)]
    return along(noise, controls, sigmas)[-1]


def exact(noise, steps):
    """The minimum of the cost of a linear system, by solving for the controls."""
    sigmas = grid(steps)
    controls = torch.zeros(steps, *noise.shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [controls], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        spent = sum((sigmas[k] - sigmas[k + 1]) * LAMBDA / 2 * controls[k].square().sum() for k in range(steps))
        cost = spent - reward(along(noise, list(controls), sigmas)[-1]).sum()
        cost.backward()
        return cost

    optimizer.step(closure)
    return along(noise, list(controls.detach()), sigmas)[-1]


def test_the_next_costate_is_the_one_to_pair_with():
    """At 4 steps the next one gives the discrete optimum; the current one leaves 6 % of the way that it goes."""
    noise = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    best = exact(noise, 4)
    assert float((solved(noise, 4, 1) - best).abs().max()) < 1e-6
    plain = along(noise, [torch.zeros_like(noise)] * 4, grid(4))[-1]
    missed = (solved(noise, 4, 0) - best).norm() / (best - plain).norm()
    assert float(missed) == pytest.approx(0.06, abs=0.005)


def test_the_optimum_on_a_gaussian_is_the_closed_form():
    """``x = (x_base + k t) / (1 + k)``, ``k = c S pi / (2 lambda)``, in mean and spread within 1 %."""
    noise = torch.randn(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = solved(noise, 200, 1, rounds=40)
    plain = FLOW.flow_map(noise, torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    k = GENTLE * FLOW.std * math.pi / (2 * LAMBDA)
    expected = (plain + k * GOAL) / (1 + k)
    assert float(found.mean()) == pytest.approx(float(expected.mean()), rel=0.01)
    assert float(found.std()) == pytest.approx(float(expected.std()), rel=0.01)


@pytest.mark.parametrize("powers", REGULARIZERS, ids=str)
def test_the_inverse_of_the_regularizers_gradient(powers):
    costate = torch.randn(6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    costate = costate * torch.logspace(-6, 4, 6, dtype=torch.float64).reshape(-1, 1, 1)
    control = adjoint.optimal_control(costate, powers)
    assert torch.allclose(adjoint.regularizer_gradient(control, powers), costate, rtol=1e-9)
    leaf = control.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(regularizer_cost(leaf, powers).sum(), leaf)
    assert torch.allclose(gradient, costate, rtol=1e-9)
    nothing = torch.zeros_like(costate)
    assert torch.equal(adjoint.optimal_control(nothing, powers), nothing)
    assert torch.equal(adjoint.regularizer_gradient(nothing, powers), nothing)


def test_a_quadratic_is_a_division():
    costate = torch.randn(2, 3, dtype=torch.float64)
    assert torch.allclose(adjoint.optimal_control(costate, {2: 4.0}), costate / 4, rtol=1e-12)


@pytest.mark.parametrize("powers", [{2: 0.5}, {2: 1.0, 4: 2.0}], ids=str)
def test_full_costates_give_the_gradient_of_the_whole_rollout(powers):
    """On a policy away from its base, with a control that depends on the state."""
    sigmas, generator = grid(6), torch.Generator().manual_seed(1)
    weight = (0.3 * torch.randn(3, 3, dtype=torch.float64, generator=generator)).requires_grad_()
    noise = torch.randn(4, 3, dtype=torch.float64, generator=generator)

    def control(x):
        return torch.tanh(x @ weight)

    def policy(x, sigma):
        return base(x, sigma) - control(x)

    state, states, cost = noise, [], torch.zeros(4, dtype=torch.float64)
    for k in range(6):
        by = sigmas[k + 1] - sigmas[k]
        states.append(state.detach())
        cost = cost - by * regularizer_cost(control(state), powers)
        state = state + by * policy(state, sigmas[k])
    (expected,) = torch.autograd.grad((cost - reward(state)).sum(), weight)

    costate, loss = terminal(state.detach()), torch.zeros(())
    for k in reversed(range(6)):
        by = sigmas[k + 1] - sigmas[k]
        loss = loss - by * hamiltonian(control(states[k]), costate, powers).sum()
        pressure = adjoint.regularizer_gradient(control(states[k]).detach(), powers)
        through_policy = pulled(lambda x, k=k: policy(x, sigmas[k]), states[k], costate - pressure)
        through_base = pulled(lambda x, k=k: base(x, sigmas[k]), states[k], pressure)
        costate = adjoint.full(costate, by, through_policy, through_base)
    (found,) = torch.autograd.grad(loss, weight)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_the_squared_distance_from_the_target_is_the_hamiltonian_of_a_quadratic():
    generator = torch.Generator().manual_seed(0)
    costate, control, velocity = torch.randn(3, 2, 5, dtype=torch.float64, generator=generator)
    control.requires_grad_()
    target = velocity - adjoint.optimal_control(costate, {2: LAMBDA})
    distance = (velocity - control - target).square().sum()
    ours, theirs = (
        torch.autograd.grad(loss, control)[0] for loss in (distance, hamiltonian(control, costate, {2: LAMBDA}).sum())
    )
    assert torch.allclose(LAMBDA / 2 * ours, theirs, rtol=1e-10)


def test_a_lookahead_is_exact_at_the_last_step():
    gradient = torch.randn(2, 3)
    assert torch.equal(adjoint.lookahead(gradient, 0.0, 1.0), gradient)
    assert torch.allclose(adjoint.lookahead(gradient, 0.4, 2.0), 0.36 * gradient)


@pytest.mark.parametrize("powers", [{2: 3.0}, {2: 1.0, 4: 50.0}], ids=str)
def test_the_reward_is_scaled_to_a_share_of_the_velocity(powers):
    generator = torch.Generator().manual_seed(0)
    gradient, velocity = torch.randn(2, 4, 100, dtype=torch.float64, generator=generator)
    sizes = [values.square().mean().sqrt() for values in (1e-4 * gradient, velocity)]
    scale = adjoint.reward_scale(*sizes, powers, 0.05)
    control = adjoint.optimal_control(scale * 1e-4 * gradient.reshape(1, -1), powers)
    assert float(control.square().mean().sqrt()) == pytest.approx(0.05 * float(sizes[1]))


def test_clipping():
    sizes = torch.tensor([0.0, 1.0, 4.0])
    assert torch.equal(adjoint.clipped_at(sizes, torch.tensor(2.0)), torch.tensor([1.0, 1.0, 0.5]))
