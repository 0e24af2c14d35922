"""Ask the servers of rewards before weights load, and stop a run whose rewards fail with a checkpoint of the step
before, so that it goes on as if nothing had been."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from flowhooks.config import Run, resolve_reward
from flowhooks.errors import ConfigError, Problem, RewardError, RewardFailure
from flowhooks.probe.values import tensors_in
from flowhooks.rewards import build_reward
from flowhooks.rewards.registry import REWARDS
from flowhooks.train.agreement import gather
from flowhooks.train.job import Job


def reward_blocks(run: Run) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (JSON path, block) of every reward of a run."""
    for hook in run.hooks:
        for i, block in enumerate(hook.options.get("rewards") or ()):
            yield f"{hook.where}.rewards[{i}]", block


def ask_servers(run: Run) -> None:
    """Ask every server of a reward once, with no image, so that a wrong address ends the run at once.

    Raises:
        ConfigError: with every server that gives no answer, or a wrong one.
    """
    problems = []
    for place, block in reward_blocks(run):
        if block["type"] in REWARDS and REWARDS[block["type"]].remote:
            reward: Any = build_reward(resolve_reward(block, place, file=str(run.source)), place)
            try:
                reward.ready()
            except RewardError as error:
                message = f"{error}; it was asked with no image, before weights load, as docs/rewards.md shows"
                problems.append(Problem(message, str(run.source), place))
    if problems:
        raise ConfigError(problems)


@contextmanager
def checkpoint_if_rewards_fail(job: Job) -> Iterator[None]:
    """Run the forward and backward passes of a step. Where a reward fails in them, write a checkpoint of the step
    before, and end the run.

    Raises:
        RewardFailure: on all processes; the message names reward, step and checkpoint.
    """
    if not any(reward_blocks(job.run)):
        yield
        return
    before = job.changed()
    versions = [(each, _version(each)) for each in tensors_in(before.session)]
    try:
        yield
    except RewardFailure as failure:
        # Where another process failed, this one has nothing to tell.
        texts = gather("" if failure.__cause__ is None else str(failure))
        told = "; ".join(f"process {rank}: {text}" if texts[1:] else text for rank, text in enumerate(texts) if text)
        ended = f"step {job.step + 1:,} has no rewards: {told}"
        if not job.step:
            raise RewardFailure(f"{ended}. Nothing is trained yet; put it right, and start again") from failure
        # Weights are those of the step before. A hook may have changed a tensor of its state in place.
        moved = any(_version(each) != version for each, version in versions)
        if any(gather("moved" if moved else "")):
            last = job.checkpoints.find("latest")
            raise RewardFailure(
                f"{ended}. A hook changes tensors of its state in place, so no checkpoint of step {job.step:,} can be "
                f"written; the last one is {last or 'none'}"
            ) from failure
        job.save(wait=True, before=before)
        raise RewardFailure(
            f"{ended}. {job.checkpoints.path(job.step)} is the checkpoint of step {job.step:,}; put it right, and "
            "resume from there: nothing is lost"
        ) from failure


def _version(tensor: Tensor) -> int | None:
    """Return how often a tensor was changed in place; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version
