"""Rewards: what an image is worth, by a number that a run may climb or only report. What a reward returns is checked
here.

The registry is free of torch; everything else is imported on first use. No reward is needed to train with any hook that
does not ask for one.
"""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes
from flowhooks.rewards.registry import REWARDS

_MODULES = {
    **{name: module for module, _, name in (spec.path.partition(":") for spec in REWARDS.values())},
    "Reward": "flowhooks.rewards.base",
    "PictureReward": "flowhooks.rewards.base",
    "scored": "flowhooks.rewards.scoring",
    "scored_with_gradient": "flowhooks.rewards.scoring",
    "reward_gradient": "flowhooks.rewards.scoring",
    "smoothed_with_gradient": "flowhooks.rewards.smoothing",
    "build_reward": "flowhooks.rewards.build",
    "build_rewards": "flowhooks.rewards.build",
}
__all__ = sorted(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
