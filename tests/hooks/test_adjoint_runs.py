"""What adjoint matching costs, keeps, counts and refuses, on tiny pipelines."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError, FlowhooksError, RewardError
from flowhooks.hooks.adjoint_target.hook import unguided_arguments
from flowhooks.hooks.decoding import Decoder
from tests.families import learnt
from tests.hooks.adjoint_runs import ROLLOUT, SCALE, STEPS, moved, run_through, target
from tests.hooks.test_on_policy import document


@pytest.mark.parametrize(
    ("options", "queries"),
    [({}, 3), ({"adjoint": "lookahead"}, 3), ({"adjoint": "full"}, 2 * 2 + 1)],
    ids=["lean", "lookahead", "full"],
)
def test_forwards_are_counted(options, queries):
    """N to draw, K to train, and the base at each of K: all but the first with a backward that carries back."""
    model = learnt("sd3")
    with flowhooks.attach(model, document(ROLLOUT, target(**options)), allow_imports=True) as session:
        calls = []
        handle = model.transformer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        passes = sum(result.passes for result in session.steps(None, log=False))
        handle.remove()
    assert passes == len(calls) == STEPS + 3 + queries
    assert sum(calls) == 3 + {"lean": 2, "lookahead": 0, "full": 4}[options.get("adjoint", "lean")]


def test_one_graph_at_a_time():
    """However many steps are carried back, no two graphs of the network live together."""
    model = learnt("sd3")
    most = {}
    for last in (2, 5):
        with flowhooks.attach(
            model, document({**ROLLOUT, "last_steps": last}, target(adjoint="full")), allow_imports=True
        ) as session:
            held = Held()
            with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
                for result in session.steps(None):
                    result.loss.backward()
            most[last] = held.peak
            assert held.now == 0
    assert most[5] == most[2]


class Held:
    """Numbers that graphs hold."""

    def __init__(self):
        self.now = self.peak = 0

    def pack(self, tensor):
        self.now += tensor.numel()
        self.peak = max(self.peak, self.now)
        return Kept(tensor, self)


class Kept:
    def __init__(self, tensor, held):
        # Detached, as a node that holds its own output would never be freed.
        self.tensor, self.held = tensor.detach(), held

    def __del__(self):
        self.held.now -= self.tensor.numel()


@pytest.mark.parametrize("adjoint", ["lean", "full", "lookahead"])
def test_rewards_rise(adjoint):
    model = learnt("sd3")
    torch.manual_seed(0)
    options = {"adjoint": adjoint, "reward_scale": None, "control_ratio": 0.3}
    with flowhooks.attach(model, document(ROLLOUT, target(**options)), allow_imports=True) as session:
        optimizer = torch.optim.AdamW(session.parameters().values(), lr=2e-3)
        found = []
        for _ in range(6):
            # The same noise again, so that a reward can be compared with the one before.
            session.micro_step = 0
            for result in session.steps(None):
                result.loss.backward()
            found.append(float(result.metrics["adjoint_reward"]))
            optimizer.step()
            optimizer.zero_grad()
    assert found == sorted(found)
    assert found[1] > found[0], "one update"


def test_the_reward_is_scaled_once_and_the_scale_survives():
    model = learnt("sd3")
    with flowhooks.attach(model, document(ROLLOUT, target(reward_scale=None)), allow_imports=True) as session:
        *_, last = session.steps(None)
        assert float(last.metrics["adjoint_control"]) == pytest.approx(0.05, rel=0.2), "a mean of shares, not the share"
        first = session.state_dict()
        moved(session)
        list(session.steps(None))
        again = session.state_dict()["hooks"]["adjoint_target"]["scale"]
        assert torch.equal(first["hooks"]["adjoint_target"]["scale"], again)
    with flowhooks.attach(model, document(ROLLOUT, target(reward_scale=None)), allow_imports=True) as session:
        session.load_state_dict(first)
        (result, *_) = session.steps(None)
        assert float(result.metrics["adjoint_reward_scale"]) == float(again)


def test_samples_that_are_not_finite_are_left_out_and_counted():
    model = learnt("sd3")
    gradients = {}
    for broken in (False, True):
        torch.manual_seed(0)
        with flowhooks.attach(model, document(ROLLOUT, target()), allow_imports=True) as session:
            (hook,) = (hook for hook in session.assembly.hooks if hook.type == "adjoint_target")
            gradient = hook._decoder.gradient

            def spoilt(clean, judge, condition, gradient=gradient, broken=broken):
                found = gradient(clean, judge, condition)
                found[1] = float("nan") if broken else 0
                return found

            hook._decoder.gradient = spoilt
            for result in session.steps(None):
                result.loss.backward()
                dropped = result.metrics["adjoint_dropped"]
            assert float(dropped) == 0.5 * broken
            gradients[broken] = {name: p.grad.clone() for name, p in session.parameters().items() if p.grad is not None}
    # What is left at the base pulls nowhere, and counts among the samples; what is left out does not count.
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], 2 * gradient, rtol=1e-3, atol=1e-7)


def test_large_costates_are_brought_to_the_running_quantile():
    model = learnt("sd3")
    with flowhooks.attach(
        model, document(ROLLOUT, target(clip_quantile=0.5, clip_decay=0.5)), allow_imports=True
    ) as session:
        (hook,) = (hook for hook in session.assembly.hooks if hook.type == "adjoint_target")
        *_, last = session.steps(None)
        sizes = torch.stack([each.square().flatten(1).mean(1) for each in hook._costates.values()]).mean(0).sqrt()
        assert float(last.metrics["adjoint_clipped"]) == 0.5
        assert float(sizes.max()) == pytest.approx(float(hook._limit), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("undeclared", "'bright' is not differentiable, and `adjoint_target` climbs gradients"),
        ("detached", "'bright' declares a gradient, but no graph leads from values"),
        ("flat", "gradient of reward 'bright' is zero in every pixel"),
    ],
)
def test_a_reward_without_a_gradient_stops_the_run_by_name(kind, message):
    with (
        pytest.raises(RewardError, match=message),
        flowhooks.attach(learnt("sd3"), document(ROLLOUT, target(kind)), allow_imports=True) as session,
    ):
        list(session.steps(None))


@pytest.mark.parametrize(
    "changes",
    [{"sampler": "sde", "last_steps": None}, {"last_steps": None}],
    ids=["with chance", "from anywhere"],
)
def test_other_rollouts_are_refused(changes):
    with (
        pytest.raises(FlowhooksError, match="carries gradients back from the end of a rollout"),
        flowhooks.attach(learnt("sd3"), document({**ROLLOUT, **changes}, target()), allow_imports=True),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "sde"}, "go with the sampler 'ode'"),
        ({"visits": 2}, "in place of `visits`"),
        ({"sigma_max": 0.5}, "give one of them"),
        ({"last_steps": None, "early_visits": 1}, "counts states before"),
    ],
)
def test_ends_that_contradict(changes, message):
    with (
        pytest.raises(ConfigError, match=message),
        flowhooks.attach(learnt("sd3"), document({**ROLLOUT, **changes}, target()), allow_imports=True),
    ):
        pass


def test_the_end_by_sigma():
    model = learnt("sd3")
    by_sigma = {**ROLLOUT, "last_steps": None, "sigma_max": 0.6}
    with flowhooks.attach(model, document(by_sigma, target()), allow_imports=True) as session:
        steps = run_through(session)
        starts = [step.views["main"].state.visit.transition.start for step in steps]
        assert starts == [t.start for t in steps[0].views["main"].state.visit.rollout.transitions if t.start <= 0.6]
    with (
        flowhooks.attach(model, document({**by_sigma, "sigma_max": 0.001}, target()), allow_imports=True) as session,
        pytest.raises(FlowhooksError, match="no step starts at or below `sigma_max` 0.001"),
    ):
        list(session.steps(None))


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_a_vae_in_half_precision_is_as_it_was(name):
    model = learnt(name)
    model.pipe.vae.to(torch.bfloat16)
    before = {key: value.clone() for key, value in model.pipe.vae.state_dict().items()}
    with flowhooks.attach(model, document(ROLLOUT, target()), allow_imports=True) as session:
        run_through(session)
    after = model.pipe.vae.state_dict()
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())


def test_a_scale_that_the_network_is_told_is_no_guidance_to_switch_off():
    flux, sd3 = learnt("flux").contract, learnt("sd3").contract
    assert unguided_arguments(sd3, {}) == {}
    assert unguided_arguments(sd3, {"guidance_scale": 4.5})["guidance_scale"] == 1.0
    off = unguided_arguments(flux, {"guidance_scale": 3.5, "true_cfg_scale": 2.0})
    assert off["true_cfg_scale"] == 1.0
    assert "guidance_scale" not in off or "embedded" not in flux.guidance


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, {"last_steps": 3, "sigma_max": None, "early_visits": 1}),
        ({"early": "free"}, {"last_steps": 3, "sigma_max": None, "early_visits": 0}),
        ({"truncate": {"sigma_max": 0.3}}, {"last_steps": None, "sigma_max": 0.3, "early_visits": 1}),
        ({"truncate": None}, {"last_steps": 28, "sigma_max": None, "early_visits": 1}),
    ],
)
def test_the_method(block, expected, tmp_path):
    rewards = [{"type": "flowhooks.digits.rewards:Ink"}]
    block = {"prompts": ["one"], "rewards": rewards, **block}
    run = resolve_run({"data": None, "method": {"adjoint_matching": block}}, tmp_path / "run.json")
    hooks = {hook.type: hook.options for hook in run.hooks}
    assert {key: hooks["on_policy_rollout"][key] for key in expected} == expected
    assert hooks["on_policy_rollout"]["sampler"] == "ode"
    assert hooks["adjoint_target"]["regularizer"] == {"2": 1.0}


def test_gradient_checkpointing_changes_nothing():
    """The network runs again in backward, which must still be as the role left it."""
    model, found = learnt("sd3"), {}
    for checkpointing in (False, True):
        (model.transformer.enable_gradient_checkpointing if checkpointing else lambda: None)()
        torch.manual_seed(0)
        with flowhooks.attach(model, document(ROLLOUT, target(adjoint="full")), allow_imports=True) as session:
            moved(session)
            found[checkpointing] = [step.target("main") for step in run_through(session)]
    for plain, again in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adjoint", ["lean", "lookahead"])
def test_smoothing_averages_the_gradient_over_noisy_copies(adjoint):
    """Two copies, each with the gradient of a square by hand; the noise is a step's own, and comes again on resume."""
    model = learnt("sd3")
    smoothing = {"samples": 2, "sigma": 0.3}
    found = []
    for _ in range(2):
        with flowhooks.attach(
            model, document(ROLLOUT, target(adjoint=adjoint, smoothing=smoothing)), allow_imports=True
        ) as session:
            steps = run_through(session)
            (hook,) = (hook for hook in session.assembly.hooks if hook.type == "adjoint_target")
            found.append([step.target("main") for step in steps])
            last, value = steps[-1], hook._values["adjoint_reward"]
            leaf = last.batch.clean.clone().requires_grad_()
            pictures = (model.decode(leaf, gradient=True) / 2 + 0.5).clamp(0, 1)
            noises = [last.draws.normal_like(pictures.contiguous(), f"smoothing/{copy}") for copy in range(2)]
            rewards = sum((pictures + 0.3 * noise).clamp(0, 1).flatten(1).square().mean(1) for noise in noises) / 2
            (gradient,) = torch.autograd.grad(SCALE * rewards.sum(), leaf)
            base = hook._bases[last.views["main"].state.visit.index]
            torch.testing.assert_close(base - found[-1][-1], gradient, rtol=1e-3, atol=1e-5)
            assert float(value) == pytest.approx(float(rewards.detach().mean()), rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_a_checkpointed_decoder_has_the_same_gradient_for_less(name):
    """Where Diffusers' VAE knows checkpointing, as SD3's does and Wan's does not; it is found as it was."""
    model = learnt(name)
    decoder, vae = Decoder(model, "a test"), model.pipe.vae
    clean = torch.randn(1, *model.sample_shape, generator=torch.Generator().manual_seed(0))
    model.decode(clean)
    before = {key: sorted(vars(module)) for key, module in vae.named_modules()}
    found, most = {}, {}
    for supported in (False, vae._supports_gradient_checkpointing):
        type(vae)._supports_gradient_checkpointing, own = supported, type(vae)._supports_gradient_checkpointing
        held = Held()
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda kept: kept.tensor):
            found[supported] = decoder.gradient(clean, lambda pictures: pictures.square())
        type(vae)._supports_gradient_checkpointing = own
        most[supported] = held.peak
    assert before == {key: sorted(vars(module)) for key, module in vae.named_modules()}
    assert found[False].any()
    if name == "sd3":
        assert torch.equal(found[True], found[False])
        assert most[True] < most[False] / 2
