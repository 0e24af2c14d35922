"""Score images by rewards that a run may maximise or only report, and check the values that rewards return.

The registry is free of torch; everything else is imported on first use. Hooks that use no reward need none
to train.
"""

from __future__ import annotations

from flowhooks.lazy import lazy_attributes
from flowhooks.rewards.registry import REWARDS

_MODULES = {
    **{name: module for module, _, name in (spec.path.partition(":") for spec in REWARDS.values())},
    "Reward": "flowhooks.rewards.base",
    "PictureReward": "flowhooks.rewards.base",
    "PairReward": "flowhooks.rewards.groups",
    "SampleReferences": "flowhooks.rewards.base",
    "scored": "flowhooks.rewards.scoring",
    "References": "flowhooks.rewards.scoring",
    "references_of": "flowhooks.rewards.scoring",
    "scored_with_gradient": "flowhooks.rewards.scoring",
    "reward_gradient": "flowhooks.rewards.scoring",
    "smoothed_with_gradient": "flowhooks.rewards.smoothing",
    "build_reward": "flowhooks.rewards.build",
    "build_rewards": "flowhooks.rewards.build",
}
__all__ = sorted(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
