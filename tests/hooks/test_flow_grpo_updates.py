"""Several updates on one rollout, moving windows and shared starts: on a tiny pipeline, against steps by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import flowhooks
from flowhooks.config import resolve_run
from flowhooks.errors import CheckpointError, ConfigError
from flowhooks.hooks.flow_grpo.ratios import compared
from flowhooks.sampling.steps import draw_noise
from tests.families import learnt
from tests.hooks.test_flow_grpo import Mean, grpo
from tests.hooks.test_on_policy import ROLLOUT, document, watched

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

GROUPED = {**ROLLOUT, "group_size": 3, "visits": 2}


class Corner(Mean):
    """How bright the first corner of a picture is, on a range of its own."""

    def score(self, pictures, prompts, records):
        return 1000 * pictures[:, :, :4, :4].flatten(1).mean(1) + 7


CORNER = {"type": "tests.hooks.test_flow_grpo_updates:Corner", "name": "corner"}


def attached(rollout: dict, batch_size: int = 1, accumulation: int = 1, rewards: list = [], **options):  # noqa: B006
    torch.manual_seed(0)
    objective = {**grpo(), **options}
    objective["rewards"] = [*objective["rewards"], *rewards]
    run = document({**GROUPED, **rollout}, objective, batch_size=batch_size)
    run["training"]["gradient_accumulation_steps"] = accumulation
    return flowhooks.attach(learnt("sd3"), run, allow_imports=True)


def trained(session, updates: int, accumulation: int = 1, rate: float = 0.02) -> list[list]:
    """The steps of every update, by the signs of the gradient, with their results."""
    parameters, found = session.parameters().values(), []
    for _ in range(updates):
        with watched(session) as steps:
            results = [result for _ in range(accumulation) for result in stepped(session)]
        found.append(list(zip(steps, results, strict=True)))
        with torch.no_grad():
            for p in parameters:
                if p.grad is not None:
                    p -= rate * p.grad.sign()
                    p.grad = None
        session.updated()
    return found


def stepped(session) -> list:
    results = []
    for result in session.steps(None):
        result.loss.backward()
        results.append(result)
    return results


def gradient_of_the_first_update(rollout: dict, **options) -> tuple[dict, list]:
    with attached(rollout, **options) as session:
        results = stepped(session)
        return {n: p.grad.clone() for n, p in session.parameters().items() if p.grad is not None}, results


@pytest.mark.parametrize("sampler", ["sde", "cps"])
def test_the_first_of_several_updates_is_that_of_a_single_one(sampler):
    single, _ = gradient_of_the_first_update({"sampler": sampler})
    first, results = gradient_of_the_first_update({"sampler": sampler, "updates_per_rollout": 2})
    assert single and single.keys() == first.keys()
    for name, value in single.items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-9)
    for result in results:
        assert result.metrics["flow_grpo_ratio"] == 1
        for name in ("divergence", "clipped_pct", "rounding"):
            assert result.metrics[f"flow_grpo_{name}"] == 0, name


@pytest.mark.parametrize("trust", ["clip", "divergence"])
def test_the_loss_of_the_first_update_is_the_mean_advantage(trust):
    with attached({"updates_per_rollout": 2, "pipeline_arguments": {"guidance_scale": 2.0}}, trust=trust) as session:
        ((step, result), *_) = trained(session, 1)[0]
        rewards = step.views["main"].state.part.notes["total"]
        advantage = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
        assert float(result.loss.detach()) == pytest.approx(result.share * -float(advantage.mean()), abs=1e-7)


@pytest.mark.parametrize(
    ("options", "out"),
    [
        ({"clip_range": 1e-4}, lambda r, v, a: ((a > 0) & (r > 1 + 1e-4)) | ((a < 0) & (r < 1 - 1e-4))),
        ({"clip_range": 0.9, "ratio": "guarded"}, lambda r, v, a: a != a),
        ({"trust": "divergence"}, lambda r, v, a: (v >= 1e-5) & (a * (r - 1) > 0)),
        ({"trust": "divergence", "divergence_threshold": 1e3}, lambda r, v, a: a != a),
    ],
    ids=["clipped", "guarded", "beyond", "within"],
)
def test_a_later_update_against_one_by_hand(options, out):
    """From the noise that the seeds give, and the velocities of the policy before the first update."""
    with attached({"updates_per_rollout": 2}, **options) as session:
        before = {}
        for step, _ in trained(session, 1)[0]:
            visit = step.views["main"].state.visit
            before[visit.index] = visit.rollout.velocities[visit.index]
        with watched(session) as steps:
            results = stepped(session)
        for step, result in zip(steps, results, strict=True):
            state = step.views["main"].state
            visit, taken, advantage = state.visit, state.visit.transition, state.part.notes["advantage"]
            z = draw_noise(visit.state, list(visit.rollout.seeds), visit.index).double()
            moved = taken.of_velocity * (step.predict("main") - visit.before).detach().double()
            v = (moved.square() / (2 * taken.deviation**2)).flatten(1).mean(1)
            exponent = (z * moved).flatten(1).mean(1)
            r = torch.exp(exponent if options.get("ratio") == "guarded" else exponent / taken.deviation - v).float()
            assert (v > 0).all() and float((r - 1).abs().max()) > 1e-6
            gone = out(r, v, advantage)
            size = options.get("clip_range", 1e9)
            clipped = torch.maximum(-advantage * r, -advantage * r.clamp(1 - size, 1 + size))
            loss = torch.where(gone, 0.0, -advantage * r) if "trust" in options else clipped
            assert float(result.loss.detach()) == pytest.approx(result.share * float(loss.mean()), rel=1e-3, abs=1e-6)
            assert float(result.metrics["flow_grpo_ratio"]) == pytest.approx(float(r.mean()), rel=1e-5)
            assert float(result.metrics["flow_grpo_divergence"]) == pytest.approx(float(v.mean()), rel=1e-3)
            assert float(result.metrics["flow_grpo_clipped_pct"]) == pytest.approx(100 * float(gone.float().mean()))
            assert result.metrics["flow_grpo_rounding"].isnan()
            if visit.index in before:
                assert torch.equal(visit.before, before[visit.index]), "that of the policy before the first update"


def test_updates_share_a_rollout_its_rewards_and_no_state_before_all_were_visited():
    with attached({"updates_per_rollout": 3, "num_inference_steps": 6}, accumulation=2, batch_size=1) as session:
        (hook,) = (h for h in session.assembly.hooks if h.type == "flow_grpo")
        passes, places, finals, rewards = [], [], [], []
        for update in trained(session, 4, accumulation=2):
            passes.append(sum(result.passes for _, result in update))
            places.append([step.views["main"].state.visit.index for step, _ in update])
            finals.append([step.batch.clean for step, _ in update])
            rewards.append([float(result.metrics["flow_grpo_reward"]) for _, result in update])
        assert passes == [2 * (6 + 2), 4, 4, 2 * (6 + 2)], "two rollouts, and two visits of each in every update"
        for slot in (slice(0, 2), slice(2, 4)):
            seen = [index for update in places[:2] for index in update[slot]]
            assert sorted(seen) == [0, 1, 2, 3, 4][:4] or len(set(seen)) == 4
            third = set(places[2][slot])
            assert {0, 1, 2, 3, 4} - set(seen) <= third, "then the one that is left, and one for the second time"
        assert all(torch.equal(a, b) for a, b in zip(finals[0], finals[2], strict=True))
        assert not torch.equal(finals[0][0], finals[0][2]) and not torch.equal(finals[0][0], finals[3][0])
        assert rewards[0] == rewards[1] == rewards[2] != rewards[3]
        assert hook._judges.rewards[0].calls == 4, "of four rollouts"


@pytest.mark.parametrize("resumed_after", [1, 2, 3])
def test_a_run_that_goes_on_between_updates_is_the_same_to_the_bit(resumed_after):
    rollout = {"updates_per_rollout": 3, "visits": 1, "shared_start": True, "window": [0, 2], "window_every": 2}
    options = {"batch_size": 2, "rewards": [CORNER], "combine": "decoupled"}

    def weights(session):
        return {name: p.detach().clone() for name, p in session.parameters().items()}

    with attached(rollout, **options) as session:
        trained(session, resumed_after)
        saved, state = weights(session), copy.deepcopy(session.state_dict())
        metrics = [result.metrics for update in trained(session, 4) for _, result in update]
        expected = weights(session)
    with attached(rollout, **options) as session:
        with torch.no_grad():
            for name, p in session.parameters().items():
                p.copy_(saved[name])
        session.load_state_dict(state)
        again = session.state_dict()["hooks"]["on_policy_rollout"]["kept"]
        assert len(again) == (0 if resumed_after == 3 else 1)
        theirs = [result.metrics for update in trained(session, 4) for _, result in update]
        assert all(torch.equal(value, expected[name]) for name, value in weights(session).items())
    for mine, other in zip(metrics, theirs, strict=True):
        assert mine.keys() == other.keys()
        assert all(torch.equal(v.nan_to_num(7), other[name].nan_to_num(7)) for name, v in mine.items())


def test_a_checkpoint_holds_what_the_page_says():
    """Of 2 visits in each of 2 updates of 6 images: 4 states and velocities, the states after them, the final one."""
    with attached({"updates_per_rollout": 2, "num_inference_steps": 8}, batch_size=2) as session:
        trained(session, 1)
        (kept,) = session.state_dict()["hooks"]["on_policy_rollout"]["kept"]
        latents = [value for value in kept.values() if isinstance(value, torch.Tensor) and value.dim() > 1]
        assert all(value.shape == (6, 4, 8, 8) for value in latents)
        assert 4 + 4 + 2 <= len(latents) <= 4 + 8 + 1
        trained(session, 1)
        assert session.state_dict()["hooks"]["on_policy_rollout"] == {"kept": []}
    with attached({}) as session:
        trained(session, 1)
        assert session.state_dict()["hooks"]["on_policy_rollout"] == {}, "one update keeps nothing"


def test_a_checkpoint_of_another_batch_is_refused():
    with attached({"updates_per_rollout": 2}, batch_size=2) as session:
        trained(session, 1)
        state = copy.deepcopy(session.state_dict())
    with (
        attached({"updates_per_rollout": 2}, batch_size=1) as session,
        pytest.raises(CheckpointError, match="keeps a rollout of 6 samples, and this run draws 3"),
    ):
        session.load_state_dict(state)


@pytest.mark.parametrize(("window", "steps"), [([0, 2], 5), ([1, 4], 5), ([0, 1], 4), ([3, 5], 5), ([4, 5], 5)])
def test_a_window_moves_to_the_end_and_never_beyond(window, steps):
    rollout = {"window": window, "window_every": 2, "num_inference_steps": steps, "visits": None}
    with attached(rollout, accumulation=3) as session:
        width, seen = window[1] - window[0], []
        for micro_step in range(0, 3 * 2 * 10):
            first, last = session.source.sampler_at(micro_step).window
            assert last - first == width and first >= 0 and last <= steps
            seen.append(first)
        assert seen[:6] == [window[0]] * 6, "two optimiser steps of three micro-batches each"
        assert all(0 <= b - a <= 1 for a, b in zip(seen, seen[1:], strict=False))
        assert seen[-1] == max(window[0], min(steps - width, steps - 2))


def test_what_is_outside_of_the_window_has_no_chance_and_is_not_visited():
    rollout = {"window": [0, 2], "window_every": 1, "num_inference_steps": 5, "visits": None}
    with attached(rollout) as session:
        for update, places in enumerate([[0, 1], [1, 2], [2, 3], [3], [3]]):
            steps = [step for step, _ in trained(session, 1)[0]]
            assert [step.views["main"].state.visit.index for step in steps] == places
            taken = steps[0].views["main"].state.visit.rollout.transitions
            assert [index for index, each in enumerate(taken) if each.deviation] == places, update


def test_a_group_starts_from_one_noise_and_ends_apart():
    rollout = {"shared_start": True, "visits": None}
    with attached(rollout, batch_size=2) as session:
        steps = [step for step, _ in trained(session, 1)[0]]
        (start, after), *_ = [
            (s.views["main"].state.visit.state, s.views["main"].state.visit.after)
            for s in steps
            if s.views["main"].state.visit.index == 0
        ]
        for group in (slice(0, 3), slice(3, 6)):
            assert torch.equal(start[group], start[group][:1].expand(3, *start.shape[1:]))
            assert not torch.equal(after[group][0], after[group][1])
        assert not torch.equal(start[0], start[3])
        assert [result.metrics["flow_grpo_reward_spread"] > 0 for _, result in trained(session, 1)[0]] == [True] * 3
        with torch.no_grad():
            visit = steps[0].views["main"].state.visit
            assert torch.equal(visit.velocity("policy"), visit.take(range(6)).velocity("policy"))


@pytest.mark.parametrize("form", ["exact", "released"])
def test_the_divergence_from_the_base_is_that_of_the_steps(form):
    with attached({"updates_per_rollout": 2}, kl_weight=0.5, kl_form=form) as session:
        trained(session, 1)
        for step, result in trained(session, 1)[0]:
            visit = step.views["main"].state.visit
            taken, state = visit.transition, visit.state.double()
            laws = [
                torch.distributions.Normal(
                    taken.of_state * state + taken.of_velocity * step.predict("main", role).detach().double(),
                    taken.deviation,
                )
                for role in ("policy", "reference")
            ]
            exact = torch.distributions.kl_divergence(*laws).mean()
            size = taken.start - taken.end if form == "released" else 1.0
            assert exact > 0
            assert float(result.metrics["flow_grpo_kl_loss"]) == pytest.approx(0.5 * size * float(exact), rel=1e-3)


def test_the_divergence_is_the_anchor_weighed_by_the_step():
    torch.manual_seed(0)
    anchor = {"type": "anchor_regularizer", "weight": 1.0}
    run = document(GROUPED, {**grpo(), "kl_weight": 1.0}, anchor, batch_size=1)
    with flowhooks.attach(learnt("sd3"), run, allow_imports=True) as session:
        for step, result in trained(session, 2)[1]:
            weight = step.views["main"].state.visit.transition.kl_weight
            distance = float(result.metrics["anchor_reference_distance"])
            assert distance > 0
            assert float(result.metrics["flow_grpo_kl_loss"]) == pytest.approx(weight * distance, rel=1e-4)


def test_one_rounding_of_the_velocities_to_bf16_moves_ratios_as_far_as_the_clip():
    """In the mean over images, on latents of 256 numbers; what the page says of rounding."""
    with attached({"updates_per_rollout": 2, "group_size": 8, "visits": None, "num_inference_steps": 10}) as session:
        moved = []
        for step, _ in trained(session, 1)[0]:
            visit = step.views["main"].state.visit
            rounded = visit.before.bfloat16().float()
            found = compared(visit.transition, visit.state, visit.after, rounded, visit.before, "plain")
            moved.append(float(found.log_ratio.abs().mean()))
    assert visit.state[0].numel() == 256
    assert 5e-5 < max(moved) < 2e-4


def test_rounding_beyond_the_clip_is_told():
    with attached({"updates_per_rollout": 2}, clip_range=1e-4) as session:
        (hook,) = (h for h in session.assembly.hooks if h.type == "flow_grpo")
        assert hook.warnings({"flow_grpo_rounding": 1e-5}) == hook.warnings({}) == []
        (said,) = hook.warnings({"flow_grpo_rounding": 3e-3})
        assert "off 1 by 0.003" in said and "`clip_range`" in said


def test_a_reward_of_a_large_range_decides_unless_it_is_decoupled():
    found = {}
    for combine in ("sum", "decoupled"):
        with attached({}, batch_size=2, rewards=[CORNER], combine=combine) as session:
            state = trained(session, 1)[0][0][0].views["main"].state
            notes = state.part.notes
            corner = notes["each.corner"].unflatten(0, (-1, 3))
            alone = (corner - corner.mean(1, keepdim=True)) / corner.std(1, correction=0, keepdim=True)
            found[combine] = float((notes["advantage"] - alone.flatten()).abs().max())
    assert found["sum"] < 0.05 < found["decoupled"]


@pytest.mark.parametrize(
    ("rollout", "options", "where"),
    [
        ({"updates_per_rollout": 2, "prompts": None}, {}, "updates_per_rollout: .*name `prompts`"),
        ({"updates_per_rollout": 2, "sampler": "ode"}, {}, "updates_per_rollout: .*'ode'"),
        ({}, {"ratio": "guarded"}, "ratio: counts from the second update"),
        ({}, {"trust": "divergence"}, "trust: counts from the second update"),
        ({}, {"clip_range": 0.5}, "clip_range: counts from the second update"),
        ({"updates_per_rollout": 2}, {"trust": "divergence", "clip_range": 0.5}, "clip_range: is about `trust`"),
        ({"updates_per_rollout": 2}, {"divergence_threshold": 0.5}, "divergence_threshold: is about `trust`"),
        ({}, {"kl_form": "released"}, "kl_form: is the form"),
        ({}, {"combine": "decoupled", "spread": "batch"}, "spread: is about `combine`"),
        ({"sampler": "cps", "noise_schedule": "constant"}, {}, "noise_schedule: is about `sde`"),
        ({"window_every": 2}, {}, "window_every: moves the `window`"),
        ({"window": [0, 2], "window_every": 2, "sampler": "ode"}, {}, "window_every: moves the `window`"),
        ({"shared_start": True, "group_size": 1}, {}, "shared_start: gives the images"),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_written(rollout, options, where):
    with pytest.raises(ConfigError, match=where), attached(rollout, **options):
        pass


def test_only_flow_grpo_weighs_later_updates_and_only_without_dropout():
    teacher = {"type": "teacher_velocity", "teachers": {"a": "nowhere"}}
    run = document({**GROUPED, "updates_per_rollout": 2}, teacher)
    with pytest.raises(ConfigError, match="updates_per_rollout: 2 updates on one rollout are weighed by 'flow_grpo'"):
        resolve_run({**run, "data": None, "model": {"pretrained_model_name_or_path": "x"}}, Path("run.json"))
    run = document({**GROUPED, "updates_per_rollout": 2}, grpo())
    run["adapter"]["dropout"] = 0.1
    with (
        pytest.raises(ConfigError, match=r"would compare two masks of `adapter.dropout` 0\.1"),
        flowhooks.attach(learnt("sd3"), run, allow_imports=True),
    ):
        pass
