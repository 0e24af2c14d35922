"""A reward that fails ends its run with a checkpoint of the step before, from which it goes on as if nothing had been:
rewards of one's own and over HTTP, alone and on two processes."""

from __future__ import annotations

import json
import os
import re
import socket

import pytest
import torch

from flowhooks.config import load_run
from flowhooks.errors import ConfigError, RewardFailure
from flowhooks.kernel import Hook
from flowhooks.rewards.base import PictureReward
from flowhooks.train import setup, train
from flowhooks.train.checkpoint import read
from tests.forked import side_by_side
from tests.rewards.servers import answering, example, served
from tests.train.runs import document, history, weights

DRAWN = {"data": None, "hooks": [], "validation": {"height": 16, "width": 16, "prompts": []}}
TRAINING = {"max_train_steps": 4, "train_batch_size": 2, "log_every_steps": 2, "checkpointing_steps": 100}
DRAWS = {"prompts": ["one", "two", "six"], "num_inference_steps": 3}
#: Number of the call -> what it raises, and how many calls there were.
raised: dict[int, Exception] = {}
calls = [0]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Faulty(PictureReward):
    """The redness of images, and an exception now and then."""

    def __init__(self, *, retryable: bool = False):
        super().__init__(name="faulty")
        self.retryable = retryable

    def score(self, pictures, prompts, records):
        calls[0] += 1
        if calls[0] in raised:
            raise raised[calls[0]]
        return pictures[:, 0].mean((1, 2))


@pytest.fixture(autouse=True)
def _sound():
    raised.clear()
    calls[0] = 0


OWN = {"type": f"{__name__}:Faulty"}
#: A method, and how often its reward is asked in a step of two micro-batches.
METHODS = {
    "flow_grpo": {**DRAWS, "group_size": 2, "visits": 2},
    "diffusion_nft": {**DRAWS, "group_size": 2},
    "adjoint_matching": {**DRAWS, "truncate": {"last_k": 2}},
}


def sections(method, reward, **more):
    return {**DRAWN, "method": {method: {**METHODS[method], "rewards": [reward], **more}}}


def same(ours, theirs):
    """Whether two checkpoints hold the same run, to the bit."""
    for stem in ("parameters", "optimization", "session", "progress", "process_0"):
        _equal(read(ours, stem), read(theirs, stem), stem)


def _equal(one, other, place):
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key, value in one.items():
            # The seconds of a step are measured.
            if key != "seconds_per_step":
                _equal(value, other[key], f"{place}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            _equal(a, b, f"{place}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_from_the_failure_bit_for_bit(new_run, method):
    """The second micro-batch of the third step fails: the first one has drawn, counted and measured already."""
    training = {**TRAINING, "gradient_accumulation_steps": 2}
    whole = train(new_run("whole", training=training, **sections(method, OWN)), progress=False).output_dir
    assert calls[0] == 8
    calls[0], raised[6] = 0, OSError("no such thing")
    run = new_run("cut", training=training, **sections(method, OWN))
    with pytest.raises(RewardFailure) as caught:
        train(run, progress=False)
    assert str(caught.value) == (
        f"step 3 has no rewards: reward 'faulty' ({__name__}:Faulty) raised OSError: no such thing. "
        f"{run.output_dir}/checkpoint-2 is the checkpoint of step 2; put it right, and resume from there: nothing is "
        "lost"
    )
    raised.clear()
    part = train(run, resume="latest", progress=False).output_dir
    same(part / "checkpoint-4", whole / "checkpoint-4")
    assert [{k: v for k, v in line.items() if "second" not in k} for line in history(part)] == [
        {k: v for k, v in line.items() if "second" not in k} for line in history(whole)
    ]


def test_a_rollout_that_is_kept_is_not_lost(new_run):
    """Steps 1 and 2 train on one rollout, steps 3 and 4 on the next, which fails."""
    both = sections("diffusion_nft", OWN, updates_per_rollout=2)
    whole = train(new_run("whole", training=TRAINING, **both), progress=False).output_dir
    assert calls[0] == 2
    calls[0], raised[2] = 0, ValueError("broken")
    run = new_run("cut", training=TRAINING, **both)
    with pytest.raises(RewardFailure, match="step 3 has no rewards: reward 'faulty' .* raised ValueError: broken"):
        train(run, progress=False)
    same(train(run, resume="latest", progress=False).output_dir / "checkpoint-4", whole / "checkpoint-4")


def test_a_reward_that_says_so_is_asked_again(new_run, monkeypatch, capsys):
    monkeypatch.setattr("flowhooks.rewards.scoring.WAIT", 0.01)
    raised.update({2: OSError("a"), 3: OSError("b"), 4: OSError("c")})
    run = new_run(training=TRAINING, **sections("flow_grpo", {**OWN, "retryable": True}))
    assert train(run, progress=False).step == 4
    told = [line for line in capsys.readouterr().err.splitlines() if "asking again" in line]
    assert [line.rpartition(": ")[2] for line in told] == [
        f"{what}; asking again in {0.01 * 2**i:g} s, {i + 1} of 3" for i, what in enumerate("abc")
    ]
    calls[0] = 0
    raised.update({5: OSError("d")})
    run = new_run("more", training=TRAINING, **sections("flow_grpo", {**OWN, "retryable": True}))
    with pytest.raises(RewardFailure, match="step 2 has no rewards: reward 'faulty' .* raised OSError: d"):
        train(run, progress=False)


def test_a_value_that_is_none_ends_the_run_with_a_checkpoint_too(new_run, monkeypatch):
    def none_at_last(self, pictures, prompts, records):
        calls[0] += 1
        return pictures.mean((1, 2, 3)) / (calls[0] < 2)

    monkeypatch.setattr(Faulty, "score", none_at_last)
    run = new_run(training=TRAINING, **sections("flow_grpo", OWN))
    with pytest.raises(RewardFailure, match="'faulty' gave inf for prompt .*checkpoint-1 is the checkpoint of step"):
        train(run, progress=False)


def test_before_the_first_update_there_is_nothing_to_keep(new_run):
    raised[1] = ValueError("broken")
    run = new_run(training=TRAINING, **sections("flow_grpo", OWN))
    with pytest.raises(RewardFailure, match="^step 1 has no rewards: .*broken. Nothing is trained yet; put it right"):
        train(run, progress=False)
    raised.clear()
    assert train(run, progress=False).step == 4


def test_a_failure_right_after_a_checkpoint_writes_none_anew(new_run):
    raised[3] = ValueError("broken")
    run = new_run(training={**TRAINING, "checkpointing_steps": 2}, **sections("flow_grpo", OWN))
    with pytest.raises(RewardFailure, match="checkpoint-2 is the checkpoint of step 2"):
        train(run, progress=False)


class Summing(Hook):
    """Adds to a tensor of its state in place, in the middle of a step."""

    type = "summing"

    @classmethod
    def declaration(cls, options):
        return {"slots": {"views"}}

    def __init__(self):
        self.sum = torch.zeros(1)

    def views(self, step, views):
        self.sum += 1
        return views

    def state_dict(self):
        return {"sum": self.sum}

    def load_state_dict(self, state):
        self.sum = state["sum"]


def test_a_hook_whose_state_is_beyond_repair_is_told(new_run):
    raised[3] = ValueError("broken")
    run = new_run(training=TRAINING, **{**sections("flow_grpo", OWN), "hooks": [{"type": f"{__name__}:Summing"}]})
    with pytest.raises(
        RewardFailure, match="state in place, so no checkpoint of step 2 can be written; the last one is"
    ):
        train(run, progress=False)


# Over HTTP.


def red(request):
    return 200, {"scores": [len(image["frames"][0]) % 7 for image in request["images"]]}


def over(url, **options):
    return {"type": "http", "url": url, "retries": 1, "retry_wait": 0.01, **options}


def test_a_server_that_goes_away_and_comes_back(new_run):
    away: set[int] = set()

    def answer(request):
        return (503, "restarting") if len(server.asked) in away else red(request)

    with answering(answer) as (url, server):
        there = sections("diffusion_nft", over(url))
        whole = train(new_run("whole", training=TRAINING, **there), progress=False).output_dir
        assert len(server.asked) == 5, "the first one asks without images"
        server.asked.clear()
        # One failure is passed over; two in a row end the run.
        away |= {3, 5, 6}
        run = new_run("cut", training=TRAINING, **there)
        with pytest.raises(RewardFailure, match=f"step 3 .*'http' at {url} answered 503 .*: restarting"):
            train(run, progress=False)
        away.clear()
        part = train(run, resume="latest", progress=False).output_dir
    same(part / "checkpoint-4", whole / "checkpoint-4")


def test_a_wrong_address_ends_a_run_before_weights_load(new_run, monkeypatch):
    def unwanted(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(setup, "load_pipeline", unwanted)
    with answering(red) as (url, _):
        pass
    run = new_run(training=TRAINING, **sections("flow_grpo", over(url, retries=9, retry_wait=60)))
    message = (
        rf"run.json: \$.method.flow_grpo.rewards\[0\]: reward 'http' at {url} cannot be reached: .*asked with no image"
    )
    with pytest.raises(ConfigError, match=message):
        train(run, progress=False)


@pytest.mark.parametrize("judges", ["image", "group", "pairs"])
def test_the_server_of_the_examples_trains(new_run, judges):
    with served(example().Server()) as url:
        run = new_run(
            training={**TRAINING, "max_train_steps": 2, "log_every_steps": 1},
            **sections("flow_grpo", over(url, judges=judges, name="ink")),
        )
        lines = history(train(run, progress=False).output_dir)
    assert len(lines) == 2
    for line in lines:
        assert 0 < line["flow_grpo_reward_ink"] < 1
        assert judges != "pairs" or line["flow_grpo_reward_ink"] == pytest.approx(0.5)


# Two processes.


def _one_of_two(rank, run, port, resume):
    torch.set_num_threads(1)
    os.environ |= {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    raised.clear()
    calls[0] = 0
    if rank == 1 and resume == "break":
        raised[3] = OSError("no such thing")
    try:
        result = train(
            load_run(run, allow_imports=True), resume="latest" if resume == "again" else None, progress=False
        )
        told = f"step {result.step}"
    except RewardFailure as failure:
        told = str(failure)
    with open(f"{run}.{rank}", "w", encoding="utf-8") as stream:
        json.dump(told, stream)


def _together(run, resume):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    side_by_side(_one_of_two, str(run), port, resume, count=2)
    return [json.loads(run.with_name(f"{run.name}.{rank}").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_all_processes_end_together_where_one_has_no_rewards(model, data, tmp_path):
    def written(name, reward):
        run = tmp_path / f"{name}.json"
        training = {**TRAINING, "train_batch_size": 1, "gradient_accumulation_steps": 1}
        parts = document(model, data, tmp_path / name, training=training, **sections("diffusion_nft", reward))
        run.write_text(json.dumps({key: value for key, value in parts.items() if value is not None}))
        return run

    whole, cut = written("whole", OWN), written("cut", OWN)
    assert _together(whole, "") == ["step 4", "step 4"]
    ends = _together(cut, "break")
    assert ends[0] == ends[1]
    assert re.match(
        r"step 3 has no rewards: process 1: reward 'faulty' .* raised OSError: no such thing\. .*checkpoint-2 is",
        ends[0],
    )
    assert _together(cut, "again") == ["step 4", "step 4"]
    ours, theirs = (weights(tmp_path / name / "checkpoint-4") for name in ("cut", "whole"))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    for rank in (0, 1):
        _equal(*(read(tmp_path / name / "checkpoint-4", f"process_{rank}") for name in ("cut", "whole")), f"{rank}")

    with served(example().Server()) as url:
        assert _together(written("served", over(url)), "") == ["step 4", "step 4"]
