"""Distribution matching of students without a second time: where they sample, what they learn, and whose turn it is."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import flowhooks
from flowhooks.adapters import build_adapter
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError
from flowhooks.hooks import DistributionMatching
from flowhooks.hooks.distribution_matching.dmd import jump_times
from flowhooks.hooks.flow_maps import expand_as_batch, guided
from flowhooks.kernel.session import Session
from flowhooks.kernel.view import Batch
from flowhooks.testing import GaussianFlow, NoCondition
from tests.families import learnt
from tests.families.checks import pairs
from tests.hooks.test_distribution_matching import FLOW, Adapted, adapter_section, is_critic, penalties
from tests.hooks.toy import EVERYTHING, build_assembly

MATCHING = {"type": "distribution_matching", "student": "renoise", "jumps": 4, "critic_rank": 2}


@pytest.fixture
def model():
    return learnt("sd3", arguments={"max_sequence_length": 8})


def document(**options):
    return {"adapter": {"rank": 2}, "hooks": [{**MATCHING, **options}]}


def euler(model: Adapted, steps: int, count: int = 4096) -> tuple[float, float]:
    """Mean and standard deviation of samples that Diffusers' own scheduler draws in so many steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=jump_times(steps, 1.0)[:-1].tolist())
    x = torch.randn(count, 16, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model.predict(x, t.expand(count) / 1000, None), t, x).prev_sample
    return float(x.mean()), float(x.std())


@pytest.mark.parametrize("student", ["renoise", "euler"])
def test_a_step_too_far_is_mended_without_data_or_second_time(student):
    """One step of the exact flow gives the data's mean and no spread; the student learns the velocity with which it
    gives both. Of several steps this toy's critic, which is affine, would only hold the spread of all together."""
    torch.manual_seed(0)
    model = Adapted()
    adapter = build_adapter(model, adapter_section(rank=8, target_modules=["net.0", "net.2", "net.4"]))
    assert euler(model, 1)[1] < 0.01
    matching = DistributionMatching(student=student, jumps=1, critic_rank=8, critic_alpha=32)
    session = Session(
        model=model,
        assembly=build_assembly((matching,), EVERYTHING, "test"),
        roles={"reference": adapter.disabled},
        parameters=adapter.named_parameters(),
        adapter=adapter,
    )
    with matching.attached(session):
        optimizer = torch.optim.Adam(session.parameters().values(), lr=4e-3, betas=(0.0, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
        for _ in range(500):
            optimizer.zero_grad()
            batch = Batch(clean=torch.empty(64, 16), condition=NoCondition(64))
            session.step(batch, log=False).loss.backward()
            optimizer.step()
            schedule.step()
    mean, std = euler(model, 1)
    assert mean == pytest.approx(FLOW.mean, abs=0.07) and std == pytest.approx(FLOW.std, abs=0.1)


def test_nothing_moves_where_the_student_is_the_teacher_but_what_guidance_adds(model):
    """With fresh adapters critic and teacher are one: the direction is 0 without guidance, and with it that of the
    teacher's guidance alone."""
    batch, sigma = pairs(model), torch.full((2,), 0.6)
    for scale in (1.0, 4.0):
        with flowhooks.attach(model, document(teacher_guidance=scale)) as session:
            found = session.evaluate(batch).metrics
        if scale == 1:
            assert float(found["dmd_gap"]) == pytest.approx(0, abs=1e-5)
        else:
            assert float(found["dmd_gap"]) > 1e-3
    hook = DistributionMatching(student="renoise", teacher_guidance=4.0)
    with torch.no_grad():
        with_prompt = model.predict(batch.clean, sigma, batch.condition)
        without = model.predict(batch.clean, sigma, model.null_conditions(batch.condition))
    step = expand_as_batch(sigma, batch.clean)
    engine = step * (hook.teacher_guidance - 1) * (with_prompt - without)
    real = batch.clean - step * guided(with_prompt, without, hook.teacher_guidance)
    torch.testing.assert_close((batch.clean - step * with_prompt) - real, engine)


def test_the_policy_waits_for_its_turn(model):
    """Between its turns nothing of it has a gradient, and the loss that is logged stays."""
    batch = pairs(model)
    with flowhooks.attach(model, document(policy_every=3, teacher_guidance=3.0)) as session:
        losses = []
        for step in range(5):
            found, parameters = penalties(session, batch), session.parameters()
            total = sum(each for each in found.values() if each.requires_grad)
            gradients = torch.autograd.grad(total, parameters.values(), allow_unused=True)
            named = dict(zip(parameters, gradients, strict=True))
            assert all(gradient is not None for name, gradient in named.items() if is_critic(name))
            policy = [gradient for name, gradient in named.items() if not is_critic(name)]
            assert all((gradient is not None) == (step % 3 == 0) for gradient in policy), step
            losses.append(float(found["dmd_generator_loss"].detach()))
            session.updated()
        assert losses[0] == losses[1] == losses[2] != losses[3] == losses[4]


def test_a_gaussian_students_gap_is_the_published_one():
    """``x0_fake - x0_real = (m_g - m) t^2 / A(t)`` for students and data that differ in their mean, ``A`` the variance
    of the noised data."""
    student, data = GaussianFlow(mean=0.2, std=0.5), GaussianFlow(mean=0.7, std=0.5)
    x = torch.randn(64, 3, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)[:, None]
    fake, real = (x - t * flow.velocity(x, t) for flow in (student, data))
    torch.testing.assert_close(fake - real, ((0.2 - 0.7) * t**2 / data.variance(t)).expand(-1, 3))


@pytest.mark.parametrize("student", ["renoise", "euler"])
def test_the_student_walks_as_the_stock_scheduler_does(student, model, monkeypatch):
    """The states of its calls are those of Diffusers' scheduler on the same grid, `stochastic_sampling` for renoise."""
    calls, noises = [], []
    shift = 3.0
    with flowhooks.attach(model, document(student=student, shift=shift)) as session:
        (hook,) = [each for each in session.assembly.hooks if isinstance(each, DistributionMatching)]
        monkeypatch.setattr(hook, "_count", lambda step: 4)
        drawn = flowhooks.kernel.random.Draws.normal_like

        def noted(self, like, purpose):
            noise = drawn(self, like, purpose)
            noises.append(noise) if purpose.startswith("dmd_renoise") else None
            return noise

        monkeypatch.setattr(flowhooks.kernel.random.Draws, "normal_like", noted)
        predict = type(model).predict

        def watched(self, noisy, sigma, condition, **times):
            velocity = predict(self, noisy, sigma, condition, **times)
            calls.append((noisy.detach(), sigma, velocity.detach()))
            return velocity

        monkeypatch.setattr(type(model), "predict", watched)
        session.step(pairs(model), log=False)
    walk = calls[:4]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=student == "renoise")
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    given = iter(noises)
    monkeypatch.setattr(f"{FlowMatchEulerDiscreteScheduler.__module__}.randn_tensor", lambda *_, **__: next(given))
    x = walk[0][0]
    for place, t in enumerate(scheduler.timesteps[:-1]):
        assert float(walk[place][1][0]) == pytest.approx(float(t) / 1000)
        x = scheduler.step(walk[place][2], t, x).prev_sample
        torch.testing.assert_close(walk[place + 1][0], x)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"student": "flow_map", "jumps": 4}, "`jumps` is 4; a `flow_map` is trained in at most 3"),
        ({"judged_from": 0.9, "judged_to": 0.2}, "`judged_from`, 0.9, is not below `judged_to`, 0.2"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        DistributionMatching(**{"student": "renoise", **options})


def test_it_is_the_whole_loss(tmp_path):
    """Beside another loss, or a flow map, it is refused."""
    for other in ({"type": "flow_dpo"}, {"type": "interval_times"}):
        with pytest.raises(ConfigError):
            run = resolve_run({**document(), "hooks": [*document()["hooks"], other]}, tmp_path / "run.json")
            flowhooks.attach(learnt("sd3"), run).__enter__()
