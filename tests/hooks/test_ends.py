"""Scored samples as a source, and pairs of them: against the pipeline's own call and plain arithmetic."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from torch._subclasses import FakeTensor

import flowhooks
from flowhooks.errors import CheckpointError, ConfigError, ModelError
from flowhooks.hooks.best_and_worst.hook import best_and_worst
from tests.families import learnt
from tests.hooks.test_on_policy import document, watched

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ENDS = {
    "type": "ends",
    "prompts": ["one", "a photo of two"],
    "num_inference_steps": 2,
    "group_size": 3,
    "rewards": [{"type": "tests.hooks.test_flow_grpo:Mean"}],
    "pipeline_arguments": {"guidance_scale": 2.0},
}
DPO = {"type": "flow_dpo", "beta": 50.0}


def online(size: int = 2, objective: dict = DPO, min_gap: float = 0.0, accumulation: int = 1, **ends) -> dict:
    run = document({**ENDS, **ends}, {"type": "best_and_worst", "min_gap": min_gap}, objective, batch_size=size)
    run["training"]["gradient_accumulation_steps"] = accumulation
    return {**run, "model": {"pipeline_arguments": {"max_sequence_length": 8}}}


def attached(model, run: dict):
    torch.manual_seed(0)
    return flowhooks.attach(model, run, allow_imports=True)


def stepped(session, count: int = 1) -> list:
    """The steps of some micro-batches, with their results."""
    found = []
    with watched(session) as steps:
        for _ in range(count):
            (result,) = session.steps(None)
            result.loss.backward()
            found.append((steps[-1], result))
    return found


@pytest.mark.parametrize("heun", [False, True], ids=["its scheduler", "another solver"])
def test_samples_are_those_of_the_pipelines_own_call(heun):
    model = learnt("sd3")
    if heun:
        model.pipe.scheduler = FlowMatchHeunDiscreteScheduler.from_config(model.pipe.scheduler.config)
    with attached(model, online()) as session:
        ((step, _),) = stepped(session)
        batch = step.batch
        for row, prompt in enumerate(batch.prompts):
            expected = model.pipe(
                prompt,
                num_inference_steps=2,
                guidance_scale=2.0,
                max_sequence_length=8,
                generator=torch.Generator().manual_seed(step.draws.seed_of("rollout", row)),
                output_type="latent",
            ).images
            torch.testing.assert_close(batch.clean[row], expected[0], rtol=1e-3, atol=1e-4)
        pixels = (model.decode(batch.clean) / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(batch.rewards, pixels.flatten(1).mean(1), rtol=1e-4, atol=1e-5)


def test_the_best_and_the_worst_of_a_group():
    rewards = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, 0.5, -1.0]])
    best, worst, gap = best_and_worst(rewards)
    assert best.tolist() == [1, 3, 7] and worst.tolist() == [0, 3, 8] and gap.tolist() == [2.0, 0.0, 1.5]


@pytest.mark.parametrize(
    "objective", [DPO, {"type": "ipo", "beta": 50.0}, {"type": "mapo"}], ids=lambda each: each["type"]
)
def test_pairs_share_prompt_noise_and_sigma(objective):
    with attached(learnt("sd3"), online(objective=objective)) as session:
        ((step, result),) = stepped(session)
        groups, main, rejected = step.batch.groups, step.views["main"], step.views["rejected"]
        clean = step.batch.clean.unflatten(0, (2, 3))
        for row in range(2):
            assert torch.equal(main.clean[row], clean[row, groups[row].argmax()])
            assert torch.equal(rejected.clean[row], clean[row, groups[row].argmin()])
        assert torch.equal(main.noise, rejected.noise) and torch.equal(main.level, rejected.level)
        expected = session.model.encode_prompts(step.batch.prompts[::3])
        assert all(
            torch.equal(a["encoder_hidden_states"], b["encoder_hidden_states"])
            for a, b in zip(main.condition.samples, expected.samples, strict=True)
        )
        gap = (groups.max(1).values - groups.min(1).values).mean()
        assert float(result.metrics["best_and_worst_gap"]) == pytest.approx(float(gap))
        assert result.metrics["best_and_worst_left_out_pct"] == 0


def test_groups_that_are_too_close_are_left_out_and_counted():
    with attached(learnt("sd3"), online(min_gap=1000.0)) as session:
        ((_, result),) = stepped(session)
        assert result.loss == 0 and result.metrics["best_and_worst_left_out_pct"] == 100
        assert result.metrics["best_and_worst_gap"].isnan() and result.metrics["flow_dpo_margin"].isnan()
        assert all(p.grad is None or not p.grad.any() for p in session.parameters().values())


def test_every_micro_batch_of_an_update_has_a_rollout_and_later_updates_use_them_again():
    with attached(learnt("sd3"), online(1, accumulation=2, updates_per_rollout=2)) as session:
        steps = [step for step, _ in stepped(session, 6)]
        clean = [step.batch.clean for step in steps]
        assert torch.equal(clean[0], clean[2]) and torch.equal(clean[1], clean[3])
        assert not torch.equal(clean[0], clean[1]) and not torch.equal(clean[0], clean[4])
        assert steps[0].batch.prompts == steps[2].batch.prompts
        assert not torch.equal(steps[0].views["main"].level, steps[2].views["main"].level)
        assert [step.forwards > 2 for step in steps] == [True, True, False, False, True, True]


def bytes_alive() -> dict[int, int]:
    """Address -> bytes of the memory behind every tensor that Python holds."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    # Other tests leave tensors without numbers, which have no memory.
    tensors = [each for each in tensors if not issubclass(type(each), FakeTensor)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}


def test_a_rollout_holds_its_final_latents_only():
    """8 prompts, 8 images of each, 24 steps: what is alive after a rollout and was not before."""
    model = learnt("sd3")
    run = online(8, prompts=["one", *"abcdefg"], group_size=8, num_inference_steps=24, updates_per_rollout=2)
    with attached(model, run) as session:

        def update() -> None:
            for result in session.steps(None, log=False):
                del result

        for _ in range(2):
            update()
        assert session.state_dict()["hooks"]["ends"] == {"kept": []}
        before = bytes_alive()
        update()
        after = bytes_alive()
        held = sum(after.values()) - sum(before.values())
        latents, number = 64 * 4 * 8 * 8 * 4, 64 * 4
        # A reward each, summed and by itself; of the metrics a few numbers, and a batch's worth that were replaced.
        assert latents + 2 * number <= held <= latents + 3 * number
        kept = session.state_dict()["hooks"]["ends"]["kept"]
        assert sum(v.nbytes for each in kept for v in each.values() if isinstance(v, torch.Tensor)) == (
            latents + 2 * number
        )


def test_a_checkpoint_of_another_batch_is_refused():
    with attached(learnt("sd3"), online(2, updates_per_rollout=2)) as session:
        stepped(session)
        state = copy.deepcopy(session.state_dict())
    with (
        attached(learnt("sd3"), online(1, updates_per_rollout=2)) as session,
        pytest.raises(CheckpointError, match="keeps a rollout of 6 samples, and this run draws 3"),
    ):
        session.load_state_dict(state)


def test_what_cannot_be_is_refused():
    with (
        pytest.raises(ModelError, match="compares samples of one prompt; set `group_size`"),
        attached(learnt("sd3"), online(group_size=1)),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="2 updates train on a rollout, and a batch of the data"),
        attached(learnt("sd3"), online(prompts=None, updates_per_rollout=2)),
    ):
        pass
