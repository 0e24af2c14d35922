"""Check that the models that rewards and hooks use exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from flowhooks.checks import hub
from flowhooks.config import Run
from flowhooks.errors import Problem

_SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")


def helper_problems(run: Run) -> Iterator[Problem]:
    """Yield a problem for each model that cannot be loaded."""
    for place, option, name in helpers(run):
        if (message := _refusal(option, name)) is not None:
            yield Problem(f"`{option}` {message}", str(run.source), f"{place}.{option}")


def helper_notices(run: Run) -> Iterator[str]:
    """Yield a sentence for each model that must be fetched first."""
    for place, option, name in helpers(run):
        if option != "head" and not Path(name).exists() and hub.cached(name, _SETTINGS) is None:
            yield f"{place}.{option}: {name} is not in the Hub's cache on this disk, so `train` fetches it first"


def helpers(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield (JSON path of the block, option, name) for every model that is given by a folder, a file or a Hub id."""
    for hook in run.hooks:
        if hook.type == "feature_alignment" and hook.options["encoder"] is not None and hook.options["weight"]:
            yield hook.where, "encoder", hook.options["encoder"]
        for i, block in enumerate(hook.options.get("rewards") or ()):
            yield from _of_reward(f"{hook.where}.rewards[{i}]", block)


def _of_reward(place: str, block: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    if ":" in block["type"]:
        return
    for option in ("head", "model", "processor"):
        name = block.get(option)
        # With a colon it is an import path.
        if isinstance(name, str) and ":" not in name:
            yield place, option, name


def _refusal(option: str, name: str) -> str | None:
    path = Path(name)
    if option == "head":
        try:
            with safe_open(path, framework="numpy"):
                return None
        except (SafetensorError, OSError) as error:
            return f"{name!r} cannot be read: {error}; give a safetensors file"
    if path.is_dir():
        if not any((path / each).is_file() for each in _SETTINGS):
            return f"{name!r} is a folder without {_SETTINGS[0]}, so no model of transformers is in it; name another"
        if option != "processor" and not any(path.glob("*.safetensors")):
            return f"{name!r} has no safetensors weights; save it with save_pretrained"
        return None
    if path.exists():
        return f"{name!r} is a file; expected a folder or a Hub id of a model"
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return f"{name!r} is no folder here, and no Hub id like owner/name; correct the path"
    if hub.is_offline() and hub.cached(name, _SETTINGS) is None:
        return (
            f"{name!r} is no folder here and not in the Hub's cache, and HF_HUB_OFFLINE forbids to fetch it; correct "
            "the path, or fetch it once with a network"
        )
    return None
