"""The rewards flowhooks ships: name -> class path. Free of torch; a class is imported when a reward is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from flowhooks.documents.imports import imported
from flowhooks.documents.suggest import hint, listed
from flowhooks.errors import ConfigError, Problem

REWARDS: Mapping[str, str] = {
    "classifier": "flowhooks.rewards.classifier:Classifier",
    "clip_score": "flowhooks.rewards.dual_encoder:ClipScore",
    "pickscore": "flowhooks.rewards.dual_encoder:PickScore",
    "aesthetic": "flowhooks.rewards.aesthetic:Aesthetic",
    "ocr": "flowhooks.rewards.ocr:TextAccuracy",
}


def reward_class(type: str, where: str) -> Any:
    """Import the class of a reward, shipped or third-party.

    Raises:
        ConfigError: no such reward; it cannot be imported, or is no class whose objects can be called and moved.
    """
    path = REWARDS.get(type, type)
    if ":" not in path:
        message = f"{type!r} is not a reward; known: {listed(REWARDS)}; or an import path 'package.module:Class'"
        raise ConfigError(Problem(message + hint(type, REWARDS), path=where))
    try:
        return imported(path, _judges, "reward: a class with `to` and `__call__`, see docs/rewards.md")
    except ImportError as error:
        raise ConfigError(Problem(f"cannot import the reward {type!r}: {error}", path=where)) from error


def _judges(found: Any) -> bool:
    """Whether a class has the two methods of a reward; the rest an object may get when it is built."""
    if not inspect.isclass(found):
        return False
    return all(any(name in vars(base) for base in found.__mro__[:-1]) for name in ("to", "__call__"))
