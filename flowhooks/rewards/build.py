"""Build the rewards that a run names, and load their models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flowhooks.documents.imports import foreign_options
from flowhooks.errors import ConfigError, ModelError, Problem
from flowhooks.rewards.base import Reward
from flowhooks.rewards.blocks import RewardConfig, resolve_reward, resolve_rewards
from flowhooks.rewards.registry import REWARDS, reward_class


def build_reward(block: Mapping[str, Any] | RewardConfig, where: str = "$", *, allow_imports: bool = False) -> Reward:
    """Build the reward of a block ``{"type": ..., ...}``, on the CPU; its ``weight`` is left to :func:`build_rewards`.

    Args:
        where: JSON path of the block.
        allow_imports: whether the block may name code by an import path; for a RewardConfig this was checked before.

    Raises:
        ConfigError: the block is not valid, or its class cannot be built or is no reward.
        ModelError: a model cannot be loaded.
    """
    if not isinstance(block, RewardConfig):
        block = resolve_reward(block, where, allow_imports=allow_imports)
    return _built(*_classed(block))


def _classed(entry: RewardConfig) -> tuple[Any, RewardConfig]:
    """Return the class of a reward, and its block with complete options."""
    cls = reward_class(entry.type, entry.where)
    if entry.type in REWARDS:
        return cls, entry
    return cls, replace(entry, options=foreign_options(entry.options, cls, None, entry.where))


def _built(cls: Any, entry: RewardConfig) -> Reward:
    try:
        reward = cls(**entry.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(Problem(str(error), path=entry.where)) from error
    except ModelError as error:
        raise ModelError(f"{entry.where}: {error}") from error
    lacking = [part for part in ("name", "range", "differentiable", "to", "__call__") if not hasattr(reward, part)]
    if lacking:
        message = f"{entry.type!r} is no reward, for it has no `{'`, `'.join(lacking)}`; docs/rewards.md has an example"
        raise ConfigError(Problem(message, path=entry.where))
    return reward


def build_rewards(
    blocks: Sequence[Mapping[str, Any]] | Sequence[RewardConfig],
    where: str = "$.rewards",
    *,
    allow_imports: bool = False,
) -> tuple[list[Reward], list[float]]:
    """Build rewards and return them with their weights. All blocks are checked before the first model is loaded.

    Args:
        where: JSON path of the list.
        allow_imports: whether they may name code by import paths.

    Raises:
        ConfigError: blocks are not valid, or two rewards have one name.
        ModelError: a model cannot be loaded.
    """
    entries = [block for block in blocks if isinstance(block, RewardConfig)]
    if not entries:
        given = [block for block in blocks if isinstance(block, Mapping)]
        entries = list(resolve_rewards(given, where, allow_imports=allow_imports))
    rewards = [_built(*each) for each in [_classed(entry) for entry in entries]]
    seen: dict[str, str] = {}
    for reward, entry in zip(rewards, entries, strict=True):
        if reward.name in seen:
            message = f"{reward.name!r} is the name of {seen[reward.name]} too; give one of them another `name`"
            raise ConfigError(Problem(message, path=entry.where))
        seen[reward.name] = entry.where
    return rewards, [entry.weight for entry in entries]
