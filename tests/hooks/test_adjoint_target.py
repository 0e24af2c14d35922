"""Targets of adjoint matching on tiny pipelines, against autograd through loops written by hand."""

from __future__ import annotations

import pytest
import torch

import flowhooks
from flowhooks.config import resolve_run
from flowhooks.errors import ConfigError, FlowhooksError, RewardError
from flowhooks.hooks.adjoint import optimal_control
from flowhooks.hooks.adjoint_target import unguided_arguments
from flowhooks.rewards import PictureReward
from flowhooks.testing.matrix import learnt
from tests.hooks.adjoint_reference import regularizer_cost
from tests.hooks.test_on_policy import document, watched
from tests.sampling.test_rollout import GUIDED

STEPS = 5
ROLLOUT = {
    "type": "on_policy_rollout",
    "prompts": ["one", "one"],
    "sampler": "ode",
    "num_inference_steps": STEPS,
    "last_steps": 3,
    "weighting": "dt",
}
SCALE = 50.0


class Bright(PictureReward):
    """How bright a picture is, bent so that its gradient depends on the picture."""

    def __init__(self, *, name: str = "bright", kind: str = "fine"):
        super().__init__(name=name)
        self.kind = kind
        self.differentiable = kind != "undeclared"

    def score(self, pictures, prompts, records):
        if self.kind == "detached":
            pictures = pictures.detach()
        if self.kind == "flat":
            pictures = 0 * pictures
        return pictures.flatten(1).square().mean(1)


def target(kind: str = "fine", **options) -> dict:
    reward = {"type": "tests.hooks.test_adjoint_target:Bright", "kind": kind}
    return {"type": "adjoint_target", "rewards": [reward], "reward_scale": SCALE, "clip_quantile": 1, **options}


def moved(session) -> None:
    """An adapter away from the base."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in session.parameters().values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def run_through(session) -> list:
    with watched(session) as steps:
        for result in session.steps(None):
            result.loss.backward()
    return steps


class ByHand:
    """The same model as plain functions of a state, without the pipeline's loop."""

    def __init__(self, session, steps):
        self.session, self.model = session, session.model
        visit = steps[-1].views["main"].visit
        self.rollout, self.transitions = visit.rollout, visit.rollout.transitions
        self.condition = self.model.encode_prompts(list(visit.rollout.prompts))

    def velocity(self, x, index, role):
        sigma = torch.full((len(x),), self.transitions[index].start)
        with self.session.roles[role]():
            return self.model.predict(x, sigma, self.condition)

    def reward(self, latents):
        pixels = self.model.decode(latents, gradient=True) / 2 + 0.5
        return SCALE * pixels.clamp(0, 1).flatten(1).square().mean(1)

    def by(self, index):
        return self.transitions[index].end - self.transitions[index].start

    def lean(self):
        """g_{k+1} by k: the base's own steps from the policy's states, differentiated one at a time."""
        leaf = self.rollout.final.clone().requires_grad_()
        (costate,) = torch.autograd.grad(self.reward(leaf).sum(), leaf)
        found = {}
        for index in range(STEPS - 1, 1, -1):
            found[index] = costate
            leaf = self.rollout.states[index].clone().requires_grad_()
            after = leaf + self.by(index) * self.velocity(leaf, index, "reference")
            (costate,) = torch.autograd.grad(after, leaf, costate)
        return found

    def full(self, powers):
        """The same by back-propagation through the policy's rollout, the control's cost included."""
        found = {}
        for index in range(STEPS - 1, 1, -1):
            leaf = state = self.rollout.states[index + 1].clone().requires_grad_()
            gain = torch.zeros(len(state))
            for k in range(index + 1, STEPS):
                ours, theirs = (self.velocity(state, k, role) for role in ("policy", "reference"))
                gain = gain + self.by(k) * regularizer_cost(theirs - ours, powers)
                state = state + self.by(k) * ours
            (found[index],) = torch.autograd.grad((gain + self.reward(state)).sum(), leaf)
        return found

    def lookahead(self):
        found = {}
        for index in range(STEPS - 1, 1, -1):
            state = self.rollout.states[index]
            after = self.rollout.states[index + 1]
            step = self.transitions[index]
            leaf = (state - step.start * (after - state) / self.by(index)).requires_grad_()
            (gradient,) = torch.autograd.grad(self.reward(leaf).sum(), leaf)
            found[index] = (1 - step.end) * gradient
        return found


def assert_targets(steps, hand, costates, powers):
    for step in steps:
        index = step.views["main"].visit.index
        with torch.no_grad():
            base = hand.velocity(hand.rollout.states[index], index, "reference")
        control = base - step.target("main")
        expected = optimal_control(costates[index], powers)
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(control, expected, rtol=2e-2, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
def test_lean_targets(name, guided):
    model = learnt(name)
    rollout = {**ROLLOUT, "pipeline_arguments": GUIDED[name]} if guided else ROLLOUT
    if guided and name == "flux":
        rollout["pipeline_arguments"] = {key: v for key, v in GUIDED[name].items() if key != "guidance_scale"}
    with flowhooks.attach(model, document(rollout, target())) as session:
        moved(session)
        steps = run_through(session)
        assert [step.views["main"].visit.index for step in steps] == [2, 3, 4]
        hand = ByHand(session, steps)
        assert_targets(steps, hand, hand.lean(), {2: 1.0})
        policy = hand.velocity(hand.rollout.states[2], 2, "policy")
        torch.testing.assert_close(steps[0].predict("main"), policy, rtol=1e-3, atol=1e-4)
        assert any(p.grad is not None and p.grad.any() for p in session.parameters().values())


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
@pytest.mark.parametrize("powers", [{"2": 1.0}, {"2": 1.0, "4": 0.3}], ids=["square", "mixed"])
def test_full_targets(name, powers):
    model = learnt(name)
    with flowhooks.attach(model, document(ROLLOUT, target(adjoint="full", regularizer=powers))) as session:
        moved(session)
        steps = run_through(session)
        hand, powers = ByHand(session, steps), {float(p): weight for p, weight in powers.items()}
        assert_targets(steps, hand, hand.full(powers), powers)


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_lookahead_targets(name):
    model = learnt(name)
    with flowhooks.attach(model, document(ROLLOUT, target(adjoint="lookahead"))) as session:
        moved(session)
        steps = run_through(session)
        hand = ByHand(session, steps)
        assert_targets(steps, hand, hand.lookahead(), {2: 1.0})


@pytest.mark.parametrize("early", [0, 2])
def test_states_before_the_end_are_held_at_the_base(early):
    model = learnt("sd3")
    with flowhooks.attach(model, document({**ROLLOUT, "early_visits": early}, target())) as session:
        moved(session)
        with watched(session) as steps:
            results = list(session.steps(None))
        assert len(steps) == 3 + early
        hand = ByHand(session, steps)
        for step, result in zip(steps, results, strict=True):
            index = step.views["main"].visit.index
            drift, early_drift = (result.metrics[name] for name in ("adjoint_drift", "adjoint_early_drift"))
            assert bool(early_drift.isnan()) == (index >= 2) != bool(drift.isnan())
            if index < 2:
                base = hand.velocity(hand.rollout.states[index], index, "reference")
                torch.testing.assert_close(step.target("main"), base, rtol=1e-3, atol=1e-4)
        assert sum(result.share for result in results) == pytest.approx(
            sum(abs(hand.by(k)) * STEPS for k in range(0 if early else 2, STEPS)) / (STEPS if early else 3)
        )


@pytest.mark.parametrize(
    ("options", "queries"),
    [({}, 3), ({"adjoint": "lookahead"}, 3), ({"adjoint": "full"}, 2 * 2 + 1)],
    ids=["lean", "lookahead", "full"],
)
def test_forwards_are_counted(options, queries):
    """N to draw, K to train, and the base at each of K: all but the first with a backward that carries back."""
    model = learnt("sd3")
    with flowhooks.attach(model, document(ROLLOUT, target(**options))) as session:
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
        with flowhooks.attach(model, document({**ROLLOUT, "last_steps": last}, target(adjoint="full"))) as session:
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
    with flowhooks.attach(model, document(ROLLOUT, target(**options))) as session:
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
    with flowhooks.attach(model, document(ROLLOUT, target(reward_scale=None))) as session:
        *_, last = session.steps(None)
        assert float(last.metrics["adjoint_control"]) == pytest.approx(0.05, rel=0.2), "a mean of shares, not the share"
        first = session.state_dict()
        moved(session)
        list(session.steps(None))
        again = session.state_dict()["hooks"]["adjoint_target"]["scale"]
        assert torch.equal(first["hooks"]["adjoint_target"]["scale"], again)
    with flowhooks.attach(model, document(ROLLOUT, target(reward_scale=None))) as session:
        session.load_state_dict(first)
        (result, *_) = session.steps(None)
        assert float(result.metrics["adjoint_reward_scale"]) == float(again)


def test_samples_that_are_not_finite_are_left_out_and_counted():
    model = learnt("sd3")
    gradients = {}
    for broken in (False, True):
        torch.manual_seed(0)
        with flowhooks.attach(model, document(ROLLOUT, target())) as session:
            (hook,) = (hook for hook in session.assembly.hooks if hook.type == "adjoint_target")
            gradient = hook._decoder.gradient

            def spoilt(clean, judge, gradient=gradient, broken=broken):
                found = gradient(clean, judge)
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
    with flowhooks.attach(model, document(ROLLOUT, target(clip_quantile=0.5, clip_decay=0.5))) as session:
        (hook,) = (hook for hook in session.assembly.hooks if hook.type == "adjoint_target")
        *_, last = session.steps(None)
        sizes = torch.stack([each.square().flatten(1).mean(1) for each in hook._costates.values()]).mean(0).sqrt()
        assert float(last.metrics["adjoint_clipped"]) == 0.5
        assert float(sizes.max()) == pytest.approx(float(hook._limit), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("undeclared", "'bright' is not differentiable, and `adjoint_target` climbs gradients"),
        ("detached", "'bright' declares a gradient, and none leads from its values"),
        ("flat", "gradient of reward 'bright' is zero in every pixel"),
    ],
)
def test_a_reward_without_a_gradient_stops_the_run_by_name(kind, message):
    with (
        pytest.raises(RewardError, match=message),
        flowhooks.attach(learnt("sd3"), document(ROLLOUT, target(kind))) as session,
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
        flowhooks.attach(learnt("sd3"), document({**ROLLOUT, **changes}, target())),
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
        flowhooks.attach(learnt("sd3"), document({**ROLLOUT, **changes}, target())),
    ):
        pass


def test_the_end_by_sigma():
    model = learnt("sd3")
    by_sigma = {**ROLLOUT, "last_steps": None, "sigma_max": 0.6}
    with flowhooks.attach(model, document(by_sigma, target())) as session:
        steps = run_through(session)
        starts = [step.views["main"].visit.transition.start for step in steps]
        assert starts == [t.start for t in steps[0].views["main"].visit.rollout.transitions if t.start <= 0.6]
    with (
        flowhooks.attach(model, document({**by_sigma, "sigma_max": 0.001}, target())) as session,
        pytest.raises(FlowhooksError, match="no step starts at or below `sigma_max` 0.001"),
    ):
        list(session.steps(None))


@pytest.mark.parametrize("name", ["sd3", "wan"])
def test_a_vae_in_half_precision_is_as_it_was(name):
    model = learnt(name)
    model.pipe.vae.to(torch.bfloat16)
    before = {key: value.clone() for key, value in model.pipe.vae.state_dict().items()}
    with flowhooks.attach(model, document(ROLLOUT, target())) as session:
        run_through(session)
    after = model.pipe.vae.state_dict()
    assert all(torch.equal(value, after[key]) and value.dtype == after[key].dtype for key, value in before.items())


def test_a_scale_that_the_network_is_told_is_no_guidance_to_switch_off():
    flux, sd3 = learnt("flux", dtype=torch.float32).contract, learnt("sd3").contract
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
    rewards = [{"type": "flowhooks.embedded.rewards:Ink"}]
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
        with flowhooks.attach(model, document(ROLLOUT, target(adjoint="full"))) as session:
            moved(session)
            found[checkpointing] = [step.target("main") for step in run_through(session)]
    for plain, again in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)
