"""A run that draws its samples and trains on data beside them, from the methods' names to a resumed checkpoint."""

from __future__ import annotations

import pytest

from flowhooks.checks.planning import forwards, plan_run
from flowhooks.errors import ConfigError
from flowhooks.train import train
from tests.train.runs import history, weights

GRPO = {
    "prompts": ["one", "a photo of two"],
    "num_inference_steps": 3,
    "visits": 1,
    "group_size": 2,
    "anchor_weight": 0.0,
    "rewards": [{"type": "flowhooks.digits.rewards:Ink"}],
}
TRAINING = {"max_train_steps": 2, "checkpointing_steps": 1, "log_every_steps": 1, "train_batch_size": 2}


@pytest.fixture(scope="module")
def methods():
    return {"flow_grpo": GRPO, "sft": {"weight": 0.25}}


def test_the_loss_of_the_data_is_in_the_total_and_a_resumed_run_is_the_same(new_run, methods):
    run = new_run("whole", method=methods, hooks=[], training=TRAINING)
    folder = train(run, progress=False).output_dir
    alone = train(new_run("alone", method={"flow_grpo": GRPO}, hooks=[], training=TRAINING), progress=False).output_dir
    first, plain = history(folder)[0], history(alone)[0]
    assert first["sft_loss"] > 0 and "sft_loss" not in plain
    # Before the first update both draw the same, so the rest of the loss is that of the method alone.
    assert first["loss"] == pytest.approx(plain["loss"] + first["sft_loss"], rel=1e-5)
    again = new_run("again", method=methods, hooks=[], training={**TRAINING, "max_train_steps": 1})
    halfway = train(again, progress=False).output_dir
    more = new_run("again", method=methods, hooks=[], training=TRAINING)
    train(more, resume="latest", progress=False)
    one, other = (weights(place / "checkpoint-2") for place in (folder, halfway))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_it_needs_data_and_counts_its_forward(new_run, methods):
    run = new_run(method=methods, hooks=[], training=TRAINING)
    alone = new_run(method={"flow_grpo": GRPO}, hooks=[], training=TRAINING)
    planned, plain = plan_run(run, run.provides), plan_run(alone, alone.provides)
    assert forwards(run, planned) == forwards(alone, plain) + 1
    with pytest.raises(ConfigError, match="`sft` needs images"):
        plan_run(run, set())
