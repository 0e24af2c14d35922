"""Reads JSON into validated, completed runs. Free of torch.

A contradiction that the run file alone shows, between two of its keys, is refused here; what needs the disk, the data,
the model's files or the machine to tell is refused by ``checks``. Every problem of a run is reported at once, with its
file and JSON path. Defaults are in the schemas only, so code reads ``run.training["seed"]`` and never supplies a value
of its own.
"""

from __future__ import annotations

from flowhooks.config.rules import draws, plain
from flowhooks.config.run import Run, load_run, resolve_run
from flowhooks.data.blocks import Datasets
from flowhooks.data.load import is_datasets, load_datasets, read_datasets
from flowhooks.hooks.blocks import HookConfig, hook_defaults, resolve_hook
from flowhooks.hooks.timestep_schedule import parse_timesteps
from flowhooks.rewards.blocks import RewardConfig, resolve_reward, resolve_rewards

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
