"""JSON in; validated, completed runs out. Free of torch.

Every problem of a run is told at once, with its file and JSON path. Defaults live in the schemas alone, so code reads
``run.training["seed"]`` and never supplies a value of its own.
"""

from __future__ import annotations

from flowhooks.config.datasets import Datasets, is_datasets, load_datasets, read_datasets
from flowhooks.config.hooks import HookConfig, hook_defaults, resolve_hook
from flowhooks.config.rewards import RewardConfig, resolve_reward, resolve_rewards
from flowhooks.config.rules import draws, plain
from flowhooks.config.run import Run, load_run, resolve_run
from flowhooks.hooks.timesteps import parse_timesteps

__all__ = [
    "Datasets",
    "HookConfig",
    "RewardConfig",
    "Run",
    "draws",
    "hook_defaults",
    "is_datasets",
    "load_datasets",
    "load_run",
    "parse_timesteps",
    "plain",
    "read_datasets",
    "resolve_hook",
    "resolve_reward",
    "resolve_rewards",
    "resolve_run",
]
