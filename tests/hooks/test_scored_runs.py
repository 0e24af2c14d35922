"""AWM, DGPO and CRD on a tiny pipeline: whose samples, whose predictions, under which noise, against plain passes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import flowhooks
from flowhooks.errors import ConfigError, ModelError
from tests.data.folders import write_image
from tests.families import checks, learnt
from tests.hooks.test_ends import ENDS, attached, stepped
from tests.hooks.test_on_policy import ROLLOUT, document, watched

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

GUIDANCE = 4.5
OPTIONS: dict[str, dict] = {
    "diffusion_nft": {},
    "awm": {},
    "dgpo": {},
    "crd": {"old_growth": 0.25},
}


def run_of(*hooks: dict) -> dict:
    return {**document(*hooks), "model": {"pipeline_arguments": {"max_sequence_length": 8}}}


def method_of(name: str, **options) -> dict:
    own = {key: value for key, value in ENDS.items() if key != "type"}
    training = {"train_batch_size": 2, "use_ema": options.get("sampled_by") == "ema"}
    return {
        "adapter": {"rank": 4},
        "model": {"pipeline_arguments": {"max_sequence_length": 8}},
        "method": {name: {**own, **OPTIONS[name], **options}},
        "training": training,
    }


def moved(session, by: float = 0.1) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(session.parameters().values()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(by * noise)


def size(values: Tensor) -> Tensor:
    return values.double().square().flatten(1).mean(1)


def advantages(step, clip: float = 5.0) -> Tensor:
    groups = step.batch.groups.double()
    away = (groups - groups.mean(1, keepdim=True)) / (groups.std(correction=0) + 1e-4)
    return away.clamp(-clip, clip).flatten()


def velocities(step, *roles: str) -> list[Tensor]:
    """By a forward each of the bare transformer's probe, on the states of the step."""
    view, found = step.views["main"], []
    for role in roles:
        with torch.no_grad(), step.session.roles[role]():
            found.append(step.model.predict(view.noisy, view.level, view.condition))
    return found


def guided_base(step) -> Tensor:
    view, (prompted,) = step.views["main"], velocities(step, "reference")
    empty = step.model.encode_prompts([""] * len(prompted))
    with torch.no_grad(), step.session.roles["reference"]():
        without = step.model.predict(view.noisy, view.level, empty)
    return GUIDANCE * prompted + (1 - GUIDANCE) * without


def test_awm_compares_errors_and_stays_near_base_and_old_model():
    options = {"clip_range": 0.05, "anchor_weight": 0.5, "old_anchor_weight": 2.0}
    with attached(learnt("sd3"), method_of("awm", **options)) as session:
        moved(session)
        ((step, result),) = stepped(session)
        policy, old, base = velocities(step, "policy", "old", "reference")
        target = step.views["main"].velocity
        mine, theirs = (
            step.views["main"].level.double() * 4 * ((size(each - target) + 1e-10) ** 0.25 - 1e-10**0.25)
            for each in (policy, old)
        )
        ratio, advantage = torch.exp(theirs - mine), advantages(step) / 5
        objective = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.95, 1.05)).mean()
        anchors = 0.5 * size(policy - base).mean() + 2.0 * size(policy - old).mean()
        assert float(result.loss.detach()) == pytest.approx(float(objective + anchors), rel=1e-4)
        assert float(result.metrics["awm_ratio"]) == pytest.approx(float(ratio.mean()), rel=1e-4)
        beyond = 100 * ((ratio - 1).abs() > 0.05).double().mean()
        assert float(result.metrics["awm_beyond_pct"]) == pytest.approx(float(beyond))
        # A rollout of two guided steps, then policy, old model and base, once each.
        assert result.passes == 2 + 3


@pytest.mark.parametrize(("reference", "guidance"), [("base", 1.0), ("base", GUIDANCE), ("old", 1.0)])
def test_dgpo_compares_whole_groups_under_one_noise(reference, guidance):
    options = {"reference": reference, "reference_guidance": guidance, "clip_range": 0.05, "anchor_weight": 0.5}
    with attached(learnt("sd3"), method_of("dgpo", beta=20.0, **options)) as session:
        moved(session)
        ((step, result),) = stepped(session)
        view = step.views["main"]
        noise, level = view.noise.unflatten(0, (2, 3)), view.level.unflatten(0, (2, 3))
        assert torch.equal(noise, noise[:, :1].expand_as(noise)) and torch.equal(level, level[:, :1].expand_as(level))
        assert not torch.equal(noise[0], noise[1]) and not torch.equal(level[0], level[1])
        policy, old, plain = velocities(step, "policy", "old", "reference")
        base = plain if guidance == 1 else guided_base(step)
        mine, theirs, compared = (size(each - view.velocity) for each in (policy, old, base))
        compared = theirs if reference == "old" else compared
        advantage = advantages(step)
        gained = (advantage * (mine - compared)).unflatten(0, (2, 3)).mean(1, keepdim=True)
        weight = torch.sigmoid(20.0 * gained).expand(2, 3).flatten()
        expected = (weight * advantage * mine).mean() + 0.5 * size(policy - base).mean()
        assert float(result.loss.detach()) == pytest.approx(float(expected), rel=1e-4)
        ratio = torch.exp(theirs - mine)
        still = ((advantage > 0) & (ratio > 1.05)) | ((advantage < 0) & (ratio < 0.95))
        assert float(result.metrics["dgpo_still_pct"]) == pytest.approx(100 * float(still.double().mean()))
        assert float(result.metrics["dgpo_weight"]) == pytest.approx(float(weight.mean()), rel=1e-4)
        # The base is asked once for gains and anchor, and once more without a prompt.
        assert result.passes == 2 + 3 + (guidance != 1)


def test_crd_is_anchored_to_the_guided_base_more_where_the_reward_is_higher():
    with attached(learnt("sd3"), method_of("crd", beta=0.5)) as session:
        moved(session)
        ((step, result),) = stepped(session)
        policy, old = velocities(step, "policy", "old")
        target, goodness = step.views["main"].velocity, 0.5 + advantages(step) / 10
        gain, worth = ((each).unflatten(0, (2, 3)) for each in (size(old - target) - size(policy - target), goodness))
        away = 0.5 * (gain - gain.mean(1, keepdim=True)) - (worth - worth.mean(1, keepdim=True))
        k, c = 0.1, 1e-4 / 0.1
        anchor = k * ((c + goodness * (1 - c)) * size(policy - guided_base(step))).mean()
        assert float(result.loss.detach()) == pytest.approx(float(10 * away.square().mean() + anchor), rel=1e-4)
        assert float(result.metrics["crd_mismatch"]) == pytest.approx(float(away.abs().mean()), rel=1e-4)
        assert result.passes == 2 + 4


def test_the_first_step_of_each():
    """A fresh adapter: minus the mean advantage, and 5 / b of the variance of what is good, in each group."""
    off = {"anchor_weight": 0.0}
    with attached(learnt("sd3"), method_of("awm", advantage_max=5.0, old_anchor_weight=0.0, **off)) as session:
        ((step, result),) = stepped(session)
        assert float(result.loss.detach()) == pytest.approx(-float(advantages(step).mean()), abs=1e-6)
        assert result.metrics["awm_ratio"] == 1 and result.metrics["awm_beyond_pct"] == 0
    crd = method_of("crd", beta=0.5, **off)
    with attached(learnt("sd3"), crd) as session:
        ((step, result),) = stepped(session)
        goodness = (0.5 + advantages(step) / 10).unflatten(0, (2, 3))
        spread = goodness.var(1, correction=0).mean()
        assert float(result.loss.detach()) == pytest.approx(10 * float(spread), rel=1e-5)
    with attached(learnt("sd3"), method_of("dgpo", **off)) as session:
        ((_, result),) = stepped(session)
        assert result.metrics["dgpo_weight"] == 0.5 and result.metrics["dgpo_still_pct"] == 0


@pytest.mark.parametrize("name", ["awm", "dgpo", "crd"])
@pytest.mark.parametrize("sampled_by", ["policy", "old", "ema"])
def test_samples_are_those_of_the_model_that_is_named(name, sampled_by):
    """The policy moves after the copies were made: its own samples change, and theirs do not."""
    found = []
    for by in (0.0, 0.1):
        with attached(learnt("sd3"), method_of(name, sampled_by=sampled_by)) as session:
            moved(session, by)
            ((step, _),) = stepped(session)
            found.append(step.batch.clean)
    assert torch.equal(*found) == (sampled_by != "policy")


def test_the_sampler_of_crd_is_a_copy_beside_the_old_model():
    with attached(learnt("sd3"), method_of("crd", sampler_growth=1.0, sampler_most=0.75, old_growth=0.0)) as session:
        parameter = next(iter(session.parameters().values()))
        start = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(1.0)
        session.updated()
        found = {}
        for role in ("old", "sampler"):
            with session.roles[role]():
                found[role] = parameter.detach().clone()
        torch.testing.assert_close(found["old"], start + 0.75)
        torch.testing.assert_close(found["sampler"], start + 0.25)


@pytest.mark.parametrize("name", ["awm", "dgpo", "crd"])
@pytest.mark.parametrize("sampled_by", ["old", "ema"])
def test_a_run_goes_on_to_the_bit_in_the_middle_of_a_rollout(name, sampled_by):
    """Three updates on a rollout; the state is taken after the first, and after the rollout's end."""
    model = learnt("sd3")
    document = method_of(name, sampled_by=sampled_by, updates_per_rollout=3, old_growth=0.25)

    def advance(session, optimizer, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            ((_, result),) = stepped(session)
            losses.append(float(result.loss.detach()))
            optimizer.step()
            optimizer.zero_grad()
            session.updated()
        return losses

    def state(session) -> dict:
        weights = {key: value.detach().clone() for key, value in session.parameters().items()}
        return {"weights": weights, "session": copy.deepcopy(session.state_dict())}

    with attached(model, document) as session:
        optimizer = torch.optim.SGD(session.parameters().values(), lr=0.1)
        advance(session, optimizer, 1)
        saved = state(session)
        expected = advance(session, optimizer, 4)
        end = state(session)
    with attached(model, document) as session:
        with torch.no_grad():
            for key, value in session.parameters().items():
                value.copy_(saved["weights"][key])
        session.load_state_dict(saved["session"])
        optimizer = torch.optim.SGD(session.parameters().values(), lr=0.1)
        assert advance(session, optimizer, 4) == expected
        again = state(session)
    assert all(torch.equal(value, again["weights"][key]) for key, value in end["weights"].items())
    kept = [{**hook["values"]} for key, hook in end["session"]["hooks"].items() if key.startswith("lagged_copy")]
    same = [{**hook["values"]} for key, hook in again["session"]["hooks"].items() if key.startswith("lagged_copy")]
    assert kept and all(torch.equal(a[k], b[k]) for a, b in zip(kept, same, strict=True) for k in a)


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ((ENDS, {"type": "dgpo"}), "needs one noise for all samples of a group.*set `noise` of the ends hook"),
        (({**ENDS, "sampled_by": "sampler"}, {"type": "crd"}), "add a lagged_copy hook with `role` 'sampler'"),
        ((ENDS, {"type": "crd"}, {"type": "best_and_worst"}), "`crd` learns from all samples of a group"),
        (({"type": "anchor_regularizer", "weight": 0.1, "least_weight": 0.01},), "needs scored samples"),
        (({"type": "anchor_regularizer", "weight": 0.1, "least_weight": 0.2},), "0.2 at the worst samples is above"),
        (
            (
                {**ROLLOUT, "group_size": 2},
                {"type": "flow_grpo", "rewards": ENDS["rewards"]},
                {"type": "anchor_regularizer", "weight": 0.1, "guidance_scale": 2.0},
            ),
            "are predicted by the pipeline's own call",
        ),
        (
            ({**ENDS, "noise": "group"}, {"type": "dgpo", "reference": "old", "reference_guidance": 2.0}),
            "guides the base",
        ),
        (
            (ENDS, {"type": "crd"}, {"type": "lagged_copy", "least": 0.6}),
            "would keep 0.6 of itself and at most 0.5",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_attached(hooks, words):
    with pytest.raises(ConfigError, match=words), flowhooks.attach(learnt("sd3"), run_of(*hooks), allow_imports=True):
        pass


def edited(prompts: object) -> dict:
    run = method_of("crd", prompts=prompts, group_size=2)
    return {**run, "model": {}, "training": {"train_batch_size": 2}}


@pytest.mark.parametrize("name", ["flux-kontext", "qwen-image-edit"])
def test_the_guided_base_keeps_the_references_of_an_edit_model(name):
    """Without its prompt a sample has the picture still; where both are encoded together, a batch holds that too."""
    model = learnt(name)
    pictures = checks.pictures(model)
    batch = replace(
        checks.pairs(model),
        prompts=checks.PROMPTS,
        references=tuple(pictures),
        condition=model.encode_conditions(checks.PROMPTS, pictures, unprompted=True),
    )
    with attached(model, edited(None)) as session, watched(session) as steps:
        moved(session)
        (result,) = session.steps(batch)
        view, (policy, base) = steps[-1].views["main"], velocities(steps[-1], "policy", "reference")
        empty = model.encode_conditions(["", "", "", ""], [p for p in pictures for _ in range(2)])
        with torch.no_grad(), session.roles["reference"]():
            without = model.predict(view.noisy, view.level, empty)
        away = size(policy - GUIDANCE * base - (1 - GUIDANCE) * without)
        goodness = 0.5 + advantages(steps[-1]) / 10
        anchor = (1e-4 + goodness * (0.1 - 1e-4)) * away
        assert float(result.metrics["anchor_reference_loss"]) == pytest.approx(float(anchor.mean()), rel=1e-3)


def test_guidance_is_refused_where_prompts_of_the_run_cannot_be_encoded_without_their_text(tmp_path):
    write_image(tmp_path / "a.png")
    prompts = [{"prompt": "one", "images": str(tmp_path / "a.png")}] * 2
    with (
        pytest.raises(ModelError, match="set `guidance_scale` of the anchor to 1, or leave out `prompts`"),
        attached(learnt("qwen-image-edit"), edited(prompts)),
    ):
        pass
