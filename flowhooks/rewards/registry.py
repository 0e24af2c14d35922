"""The rewards flowhooks ships: name -> class path. Free of torch; a class is imported when a reward is built."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from flowhooks.config.suggest import hint, listed
from flowhooks.errors import ConfigError, Problem

REWARDS: Mapping[str, str] = {
    "classifier": "flowhooks.rewards.classifier:Classifier",
    "clip_score": "flowhooks.rewards.clip_score:ClipScore",
    "pickscore": "flowhooks.rewards.pickscore:PickScore",
    "aesthetic": "flowhooks.rewards.aesthetic:Aesthetic",
    "ocr": "flowhooks.rewards.ocr:TextAccuracy",
}


def reward_class(type: str, where: str) -> Any:
    """Import the class of a reward, shipped or third-party.

    Raises:
        ConfigError: no such reward; the module or the class cannot be imported.
    """
    module, _, name = REWARDS.get(type, type).partition(":")
    if not name:
        message = f"{type!r} is not a reward; known: {listed(REWARDS)}; or an import path 'package.module:Class'"
        raise ConfigError(Problem(message + hint(type, REWARDS), path=where))
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(Problem(f"cannot import the reward {type!r}: {error}", path=where)) from error
