"""TwinFlow on pipelines: negative times in a network's own unit, what each loss reaches, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import flowhooks
from flowhooks.config import resolve_run
from flowhooks.errors import AdapterError, ConfigError
from flowhooks.hooks import TwinFlow, TwinFlowTarget
from flowhooks.hooks.build import resolved_hooks
from flowhooks.hooks.weight_average.hook import averaged
from flowhooks.kernel.hook import Hook
from flowhooks.probe.times import Time
from tests.families import learnt
from tests.families.checks import pairs
from tests.hooks.toy import EVERYTHING, build_assembly, targeted

TARGET = {"type": "twin_flow_target"}
TWIN = {"type": "twin_flow"}
LINEAR = {"type": "target_replacer", "target_mode": "linear"}
ZERO = {"type": "interval_times", "r_timestep_sampler": "zero"}
MIXTURE = {"type": "interval_times", "r_timestep_sampler": "mixture"}


def document(*hooks, **more):
    return {"adapter": {"rank": 2}, "hooks": list(hooks), "training": {"use_ema": True}, **more}


@contextmanager
def recording(model):
    """What every call of the network was given for its times, and what of sigma that was."""
    told, predict, names = [], model.predict, [time.name for time in model.contract.times]

    def watch(network, args, kwargs):
        told[-1][1].append([kwargs[name] for name in names])

    def recorded(noisy, sigma, condition, *, r_sigma=None):
        told.append(((sigma, sigma if r_sigma is None else r_sigma), []))
        return predict(noisy, sigma, condition, r_sigma=r_sigma)

    handle = model.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    model.predict = recorded
    try:
        yield told
    finally:
        handle.remove()
        del model.predict


UNITS = {
    "sd3": (1000.0, 0.0),
    "flux": (1.0, 0.0),
    "qwen-image": (1.0, 0.0),
    "z-image": (-1.0, 1.0),
    "lumina2": (-1.0, 1.0),
    "mochi": (-1000.0, 1000.0),
    "sana": (1000.0, 0.0),
    "wan": (1000.0, 0.0),
    "hunyuan-image-distilled": (1000.0, 0.0),
}


@pytest.mark.parametrize("name", UNITS)
def test_networks_are_told_a_negative_time_in_their_own_unit(name):
    scale, offset = UNITS[name]
    model = learnt(name)
    batch = pairs(model)
    with flowhooks.attach(model, document(TWIN, LINEAR, ZERO)) as session, recording(model) as told:
        result = session.step(batch)
    assert bool(result.loss.isfinite()) and result.passes == len(told) == 4
    signs = []
    for (sigma, end), calls in told:
        # Prompts of several lengths go in several calls.
        for time, given in zip(model.contract.times, zip(*calls, strict=True), strict=True):
            expected = scale * (end if time.second else sigma).float() + offset
            told_values = torch.cat([value.flatten() for value in given]).unique()
            torch.testing.assert_close(told_values, expected.to(told_values.dtype).unique())
        signs.append(sorted({float(s) for s in sigma.sign()}))
    assert sorted(signs) == [[-1], [-1, 1], [1], [1]]


@torch.no_grad()
@pytest.mark.parametrize("name", UNITS)
def test_networks_tell_the_branches_apart(name):
    model = learnt(name)
    batch, sigma = pairs(model), torch.full((2,), 0.6)
    real, fake = (model.predict(batch.clean, s, batch.condition) for s in (sigma, -sigma))
    assert bool(fake.isfinite().all()) and not torch.allclose(real, fake, atol=1e-4)


def test_an_unshifted_time_is_mirrored():
    """Of CogView4, whose time is sigma before the shift, in thousandths: formula and pole are left behind at 0."""
    time = Time(name="timestep", scale=1000.0, offset=0.0, dtype=torch.float64, unshifted=True)
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    for shift in (0.25, 1.0, 3.0):
        assert torch.equal(time.of(-sigma, shift), -time.of(sigma, shift))
        assert bool((time.of(sigma, shift).diff() > 0).all())


@pytest.fixture
def model():
    return learnt("sd3", arguments={"max_sequence_length": 8})


def test_the_enhanced_velocity_is_that_of_the_average(model):
    """By ``ratio`` times what the prompt makes of the averaged weights, where there is no interval too."""
    blocks = {**TARGET, "enhanced_ratio": 0.5}, {**MIXTURE, "diffusion_ratio": 1.0, "zero_ratio": 0.0}
    with flowhooks.attach(model, document(*blocks)) as session:
        found, result = targeted(session, pairs(model))
        assert result.passes == 2
        view, null = found["view"], model.null_condition.join([model.null_condition])
        with torch.no_grad(), averaged(session):
            u, u_null = (model.predict(view.noisy, view.level, c, r_sigma=view.level) for c in (view.condition, null))
    torch.testing.assert_close(found["target"] - view.velocity, 0.5 * (u - u_null))
    assert bool((u != u_null).any())


def test_each_loss_reaches_what_is_trained(model):
    with flowhooks.attach(model, document(TARGET, MIXTURE, TWIN)) as session:
        with torch.no_grad():
            for name, p in session.parameters().items():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
        found, gather = {}, session.assembly.penalties
        session.assembly.penalties = lambda step: found.update(gather(step)) or found
        session.step(pairs(model), log=False)
        assert set(found) == {"twin_flow_adversarial_loss", "twin_flow_rectification_loss"}
        for loss in found.values():
            gradients = torch.autograd.grad(loss, list(session.parameters().values()), retain_graph=True)
            assert all(bool(g.isfinite().all()) and g.any() for g in gradients)


def test_gradient_checkpointing_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        model = learnt("sd3", arguments={"max_sequence_length": 8})
        model.transformer.train()
        if checkpointing:
            model.transformer.enable_gradient_checkpointing()
        torch.manual_seed(0)
        with flowhooks.attach(model, document(TARGET, MIXTURE, TWIN)) as session:
            session.step(pairs(model)).loss.backward()
            found.append({name: p.grad.clone() for name, p in session.parameters().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_held_out_data_is_measured_without_gradient(model):
    with flowhooks.attach(model, document(TARGET, MIXTURE, TWIN)) as session:
        result = session.evaluate(pairs(model))
        assert not result.loss.requires_grad and bool(result.metrics["twin_flow_gap"] > 0)


def test_without_an_average_it_names_the_setting(model):
    with (
        pytest.raises(ConfigError, match=r"`twin_flow_target` needs an average of the weights.*training.use_ema"),
        flowhooks.attach(model, document(TARGET, training={"use_ema": False})),
    ):
        pass


def test_dropout_is_refused(model):
    dropped = {"rank": 2, "dropout": 0.1}
    with pytest.raises(ConfigError, match=r"\$\.hooks\[0\]: 'twin_flow_target' takes differences.*set it to 0"):
        resolve_run(document(TARGET, adapter=dropped), Path("run.json"))
    run = {**document(), "adapter": dropped}
    with flowhooks.attach(model, run) as session:
        refused = pytest.raises(AdapterError, match="set it to 0")
        with refused, TwinFlowTarget().attached(session):
            pass


@pytest.mark.parametrize(
    ("hook", "options"),
    [
        (TwinFlowTarget, {"estimate_order": 0}),
        (TwinFlowTarget, {"delta_t": 0.0}),
        (TwinFlowTarget, {"target_clamp": 0.0}),
        (TwinFlowTarget, {"enhanced_ratio": 1.0}),
        (TwinFlow, {"adversarial_weight": -1.0}),
        (TwinFlow, {"rectification_weight": -1.0}),
        (TwinFlow, {"shift": 0}),
        (TwinFlow, {"difference_clamp": 0.0}),
    ],
)
def test_bad_options_are_refused(hook, options):
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        resolve_run(document({"type": hook.type, **options}), Path("run.json"))
    with pytest.raises(ValueError, match=f"`{name}`"):
        hook(**options)


def test_corrections_by_an_untrained_branch_are_refused(model):
    block = {**TWIN, "adversarial_weight": 0}
    with pytest.raises(ConfigError, match=r"set both to 0"), flowhooks.attach(model, document(block)):
        pass


def test_a_weight_of_zero_asks_for_nothing(model):
    nothing = {**TWIN, "adversarial_weight": 0, "rectification_weight": 0}
    with flowhooks.attach(model, document(nothing)) as session:
        assert session.step(pairs(model), log=False).passes == 1
        assert not session.assembly.modules()


@pytest.mark.parametrize(
    ("hooks", "what"),
    [((TARGET, LINEAR), "says what the network should predict"), ((TWIN, TWIN), "gives 'negative_times'")],
)
def test_one_of_each_a_run(hooks, what):
    with pytest.raises(ConfigError, match=f"each {what}"):
        build_assembly(hooks, {*EVERYTHING, "role:ema"}, "run.json")
    build_assembly([TARGET, TWIN], {*EVERYTHING, "role:ema"}, "run.json")


class PerToken(Hook):
    """Stands for one that gives every token a time of its own, as Self-Flow does."""

    def metrics(self, step):
        return {}

    @classmethod
    def declaration(cls, options):
        why = "Self-Flow and TwinFlow cannot run together: a network takes a time for every token, or one interval"
        return {"slots": {"metrics"}, "excludes": dict.fromkeys(("twin_flow", "twin_flow_target"), why)}


@pytest.mark.parametrize("block", [TARGET, TWIN])
def test_a_hook_may_refuse_both(block):
    given = resolved_hooks([{"type": f"{__name__}:PerToken"}, block], allow_imports=True)
    with pytest.raises(ConfigError) as caught:
        build_assembly(given, {*EVERYTHING, "role:ema"}, "run.json")
    text = str(caught.value)
    assert "$.hooks[0]" in text and f"`{block['type']}` (at $.hooks[1])" in text
    assert "Self-Flow and TwinFlow cannot run together: a network takes" in text


def test_residuals_are_those_of_full_precision_under_autocast(model):
    """Divided by a step of 0.01, what bf16 rounds off would be as large as what is measured."""
    found, batch = {}, pairs(model)
    for mixed in (False, True):
        torch.manual_seed(0)
        with flowhooks.attach(model, document({**TARGET, "target_clamp": None}, ZERO)) as session:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                seen, result = targeted(session, batch)
            found[mixed] = seen["target"] - seen["student"].detach()
            assert bool(result.loss.isfinite())
    torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-4)
