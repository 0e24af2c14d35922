"""Distribution matching: the maths on the analytic flow, a map that learns from it alone, and the plumbing on SD3."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import flowhooks
from flowhooks.adapters import build_adapter
from flowhooks.adapters.adapter_file import read_tensors
from flowhooks.config import resolve_run
from flowhooks.errors import AdapterError, ConfigError
from flowhooks.hooks import DistributionMatching, IntervalTimes, TargetReplacer
from flowhooks.hooks.distribution_matching.dmd import (
    critic_error,
    direction,
    dmd_surrogate,
    flow_map_jump,
    jump_times,
    noising_times,
    with_gradients,
)
from flowhooks.hooks.flow_maps import expand_as_batch
from flowhooks.kernel.session import Session
from flowhooks.kernel.view import Batch
from flowhooks.manifest import MODULES
from flowhooks.modules_file import read_manifest, save_modules
from flowhooks.testing import GaussianFlow, NoCondition
from tests.families import learnt, tiny
from tests.families.checks import pairs
from tests.hooks.toy import EVERYTHING, AffineMap, assert_descends_to_data, build_assembly

FLOW = GaussianFlow(mean=0.8, std=0.3)


def answer(flow: GaussianFlow, x, sigma):
    """What ``x`` was made of, says the exact velocity of ``flow``."""
    return flow_map_jump(x, flow.velocity(x, expand_as_batch(sigma, x)), sigma)


def noised(sample, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    sigma = noising_times(torch.rand(len(sample), generator=generator, dtype=sample.dtype), 1.0)
    noise = torch.randn(sample.shape, generator=generator, dtype=sample.dtype)
    return sample + expand_as_batch(sigma, sample) * (noise - sample), sigma


def generator_gradient(mean: float, std: float) -> tuple[float, float]:
    """Of the loss in mean and standard deviation of Gaussian samples, their critic being exact."""
    noise = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    m, s = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (mean, std))
    sample = m + s * noise
    x, sigma = noised(sample.detach())
    fake, real = answer(GaussianFlow(mean=mean, std=std), x, sigma), answer(FLOW, x, sigma)
    dmd_surrogate(sample, direction(fake, real, sample.detach())).mean().backward()
    return float(m.grad), float(s.grad)


def test_both_answers_differ_by_the_difference_of_the_scores():
    """``x_0`` given ``x_s`` is ``(x_s + s^2 score) / (1 - s)`` on average."""
    sample = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, sigma = noised(sample)
    other = GaussianFlow(mean=-0.5, std=0.9)
    scores = [
        ((1 - expand_as_batch(sigma, x)) * f.mean - x) / f.variance(expand_as_batch(sigma, x)) for f in (other, FLOW)
    ]
    expected = expand_as_batch(sigma**2 / (1 - sigma), x) * (scores[0] - scores[1])
    torch.testing.assert_close(answer(other, x, sigma) - answer(FLOW, x, sigma), expected)


def test_descent_moves_samples_to_the_data_and_stays_there():
    assert_descends_to_data(generator_gradient, FLOW)


def test_the_pull_has_the_direction_for_its_gradient():
    sample, towards = torch.randn(3, 2, 5, requires_grad=True), torch.randn(3, 2, 5)
    dmd_surrogate(sample, towards).sum().backward()
    torch.testing.assert_close(sample.grad, towards / 10)


def test_a_direction_that_is_not_finite_is_none():
    sample = torch.randn(2, 4)
    real = torch.stack([sample[0], sample[1] + 1])
    found = direction(real + 0.5, real, sample)
    assert not found[0].any()
    torch.testing.assert_close(found[1], torch.full((4,), 0.5))
    assert direction(torch.full((2, 4), float("nan")), real, sample)[1].isnan().all()


def test_times():
    assert jump_times(2, 1.0).tolist() == [1, 0.5, 0]
    assert jump_times(2, 3.0).tolist() == [1, 0.75, 0]
    ends = noising_times(torch.tensor([0.0, 1.0]), 3.0)
    assert ends.tolist() == pytest.approx([0.02, 0.98])
    assert noising_times(torch.tensor([0.0, 1.0]), 3.0, 0.1, 0.5).tolist() == pytest.approx([0.1, 0.5])


def test_a_carried_loss_has_the_gradient_it_was_given():
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    loss = with_gradients(torch.tensor(4.0), [torch.tensor([1.0, 2.0]), None], weights)
    assert float(loss.detach()) == 4
    (0.5 * loss).backward()
    assert weights[0].grad.tolist() == [0.5, 1] and weights[1].grad is None


class Adapted(AffineMap):
    """``u = v_exact(x, t) + a(t, r) x + b(t, r)``, where a and b are 0 without an adapter; the engine's model."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.net[4].weight)
        nn.init.zeros_(self.net[4].bias)

    def predict(self, noisy, sigma, condition, *, r_sigma=None):
        return FLOW.velocity(noisy, expand_as_batch(sigma, noisy)) + self(
            noisy, sigma, sigma if r_sigma is None else r_sigma
        )


def adapter_section(**changes):
    return resolve_run({"hooks": [], "adapter": {"rank": 8, **changes}}, Path("run.json")).adapter


@torch.no_grad()
def spread(model: Adapted, jumps: int) -> tuple[float, float]:
    """Mean and standard deviation of samples drawn in so many jumps."""
    x = torch.randn(1024, 16, generator=torch.Generator().manual_seed(9))
    times = [sigma.expand(len(x)) for sigma in jump_times(jumps, 1.0)]
    for t, r in pairwise(times):
        x = flow_map_jump(x, model.predict(x, t, None, r_sigma=r), t - r)
    return float(x.mean()), float(x.std())


def learn(
    model: Adapted, adapter, matching: DistributionMatching, target: TargetReplacer, steps: int, lr: float = 2e-3
) -> None:
    hooks = (matching, target, IntervalTimes(r_timestep_sampler="mixture"))
    session = Session(
        model=model,
        assembly=build_assembly(hooks, EVERYTHING, "test"),
        roles={"reference": adapter.disabled},
        parameters=adapter.named_parameters(),
        adapter=adapter,
    )
    with matching.attached(session):
        optimizer = torch.optim.Adam(session.parameters().values(), lr=lr, betas=(0.0, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            clean = FLOW.mean + FLOW.std * torch.randn(64, 16, generator=generator)
            optimizer.zero_grad()
            session.step(Batch(clean=clean, condition=NoCondition(64)), log=False).loss.backward()
            optimizer.step()
            schedule.step()


def adapted(rank: int):
    model = Adapted()
    section = adapter_section(rank=rank, target_modules=["net.0", "net.2", "net.4"])
    return model, build_adapter(model, section)


def test_a_map_learns_the_data_from_its_own_samples_alone():
    """No data and no target: from one place beside the data to its mean and its spread."""
    model, adapter = adapted(rank=8)
    with torch.no_grad():
        adapter.named_parameters()["net.4.lora_B.weight"].fill_(0.4)
    mean, std = spread(model, 1)
    assert mean > FLOW.mean + 0.08 and std < 0.15
    nothing = TargetReplacer(target_mode="linear", loss_weight=0.0)
    learn(model, adapter, DistributionMatching(jumps=1, critic_rank=8, critic_alpha=32), nothing, 400, lr=4e-3)
    assert spread(model, 1) == pytest.approx((FLOW.mean, FLOW.std), abs=0.07)


def test_beside_the_flow_maps_own_loss_every_number_of_jumps_is_right():
    model, adapter = adapted(rank=32)
    assert spread(model, 1)[1] < 0.01 and spread(model, 2)[1] < 0.1
    target = TargetReplacer(target_mode="flow_map", velocity="reference")
    learn(model, adapter, DistributionMatching(jumps=2, critic_rank=8, critic_alpha=32), target, 1200)
    for jumps in (1, 2):
        assert spread(model, jumps) == pytest.approx((FLOW.mean, FLOW.std), abs=0.07)


MATCHING = {"type": "distribution_matching", "jumps": 2, "critic_rank": 2}
FLOW_MAP = [
    {"type": "target_replacer", "target_mode": "linear"},
    {"type": "interval_times", "r_timestep_sampler": "zero"},
]


@pytest.fixture
def model():
    return learnt("sd3", arguments={"max_sequence_length": 8})


def document(*hooks, **more):
    return {"adapter": {"rank": 2}, "hooks": [*FLOW_MAP, *hooks], **more}


@contextmanager
def trained(model, *hooks):
    """A session whose every weight has a value that shows."""
    torch.manual_seed(0)
    with flowhooks.attach(model, document(*hooks)) as session:
        with torch.no_grad():
            for name, p in session.parameters().items():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
        yield session


def penalties(session, batch) -> dict:
    """The penalties of a step, with their graphs."""
    found, gather = {}, session.assembly.penalties
    session.assembly.penalties = lambda step: found.update(gather(step)) or found
    session.step(batch, log=False)
    return found


def is_critic(name: str) -> bool:
    return name.startswith("distribution_matching.")


def picture(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    call = {"output_type": "latent", "generator": generator, "max_sequence_length": 8}
    return pipe("one", num_inference_steps=3, guidance_scale=2.0, **call).images


def test_each_loss_trains_its_own_part(model):
    with trained(model, MATCHING) as session:
        found, parameters = penalties(session, pairs(model)), session.parameters()
        for loss, own in (("dmd_critic_loss", is_critic), ("dmd_generator_loss", lambda name: not is_critic(name))):
            gradients = torch.autograd.grad(found[loss], parameters.values(), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                assert (gradient is not None and bool(gradient.any())) == own(name), (loss, name)
        assert any(map(is_critic, parameters))


def test_the_critics_gradient_is_that_of_its_loss(model):
    """Against a difference of the loss along it, the same noise on both sides."""
    batch = pairs(model)
    with trained(model, MATCHING) as session:
        critic = [p for name, p in session.parameters().items() if is_critic(name)]
        gradients = torch.autograd.grad(penalties(session, batch)["dmd_critic_loss"], critic)
        slope = sum(float(g.square().sum()) for g in gradients) ** 0.5
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, g in zip(critic, gradients, strict=True):
                    p.add_(sign * (1 if sign > 0 else 2) * 0.05 * g / slope)
            losses.append(float(session.evaluate(batch).metrics["dmd_critic_loss"]))
        assert (losses[0] - losses[1]) / 0.1 == pytest.approx(slope, rel=0.02)


def test_gradient_checkpointing_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        model = learnt("sd3", arguments={"max_sequence_length": 8})
        model.transformer.train()
        if checkpointing:
            model.transformer.enable_gradient_checkpointing()
        with trained(model, MATCHING) as session:
            session.step(pairs(model)).loss.backward()
            found.append({name: p.grad.clone() for name, p in session.parameters().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_small_gradients_of_the_critic_outlive_half_precision(model, monkeypatch):
    """Of many elements each has a share too small for fp16; what scales the caller's loss comes too late for it."""
    monkeypatch.setattr(
        "flowhooks.hooks.distribution_matching.hook.critic_error", lambda *args: 1e-5 * critic_error(*args)
    )
    found = []
    for dtype in (torch.float32, torch.float16):
        with trained(model, MATCHING) as session, torch.autocast("cpu", dtype, enabled=dtype == torch.float16):
            loss = penalties(session, pairs(model))["dmd_critic_loss"]
            critic = [p for name, p in session.parameters().items() if is_critic(name)]
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, critic)]))
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.05


def test_micro_steps_may_share_one_autocast(model):
    with trained(model, MATCHING) as session, torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            session.step(pairs(model)).loss.backward()
        assert all(bool(p.grad.isfinite().all()) and p.grad.any() for p in session.parameters().values())


@torch.no_grad()
def test_nobody_else_sees_the_critic(model, tmp_path):
    """Pictures, reference, and the files of the policy are those of a run without it."""
    batch, sigma = pairs(model), torch.full((2,), 0.6)
    bare = model.predict(batch.clean, sigma, batch.condition)
    files = {}
    for name, hooks in (("with", [MATCHING]), ("without", [])):
        with trained(model, *hooks) as session:
            with session.roles["reference"]():
                assert torch.equal(model.predict(batch.clean, sigma, batch.condition), bare)
            session.adapter.save(tmp_path / name, {})
            save_modules(tmp_path / name, session.assembly, model, {})
            model.transformer.save_lora_adapter(tmp_path / name / "stock", adapter_name="default")
            files[name] = picture(model.pipe)
            assert ("critic" in session.roles) == bool(hooks)
    assert torch.equal(files["with"], files["without"])
    for file in ("pytorch_lora_weights.safetensors", "stock/pytorch_lora_weights.safetensors"):
        ours, theirs = (read_tensors(tmp_path / name / file) for name in files)
        assert ours[1] == theirs[1] and ours[0].keys() == theirs[0].keys()
        assert all(torch.equal(tensor, theirs[0][key]) for key, tensor in ours[0].items())
    blocks = read_manifest(tmp_path / "with" / MODULES)["hooks"]
    assert [block["type"] for block in blocks] == ["time_conditioning"]
    pipe = tiny("sd3")
    pipe.load_lora_weights(tmp_path / "with")


@torch.no_grad()
def test_the_critic_starts_as_the_teacher(model):
    batch, sigma = pairs(model), torch.full((2,), 0.6)
    bare = model.predict(batch.clean, sigma, batch.condition)
    with flowhooks.attach(model, document(MATCHING)) as session:
        with session.roles["critic"]():
            torch.testing.assert_close(model.predict(batch.clean, sigma, batch.condition), bare, rtol=0, atol=1e-6)
        metrics = session.evaluate(batch).metrics
        assert float(metrics["dmd_gap"]) == pytest.approx(0, abs=1e-5)
        assert float(metrics["dmd_critic_loss"]) > 0


def test_a_failing_attach_leaves_nothing(model):
    before = picture(model.pipe)
    with pytest.raises(ConfigError, match="role:critic"), flowhooks.attach(model, document(MATCHING, MATCHING)):
        pass
    lycoris = document(MATCHING, adapter={"type": "lycoris", "rank": 2})
    with pytest.raises(AdapterError, match="`adapter.type` is 'lycoris'"), flowhooks.attach(model, lycoris):
        pass
    assert torch.equal(picture(model.pipe), before)


def test_full_training_is_refused(model):
    whole = document(MATCHING, adapter=None, training={"trainable": "transformer"})
    with pytest.raises(ConfigError, match="needs a reference, .*'adapter' section"), flowhooks.attach(model, whole):
        pass


@pytest.mark.parametrize(
    "options", [{"weight": -1.0}, {"jumps": 0}, {"jumps": 4}, {"critic_rank": 0}, {"critic_alpha": 0.0}, {"shift": 0}]
)
def test_bad_options_are_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        resolve_run(document({"type": "distribution_matching", **options}), Path("run.json"))
    with pytest.raises(ValueError, match=f"`{name}`"):
        DistributionMatching(**options)


def test_a_weight_of_zero_makes_no_critic(model):
    with flowhooks.attach(model, document({**MATCHING, "weight": 0})) as session:
        assert not any(map(is_critic, session.parameters())) and "critic" not in session.roles
        assert session.step(pairs(model), log=False).passes == 1
