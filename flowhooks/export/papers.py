"""The papers behind the hooks, for the model card's citation. The entries are in ``papers.bib``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from flowhooks.hooks.registry import HOOKS

_ENTRY = re.compile(r"@\w+\{(\w+),.*?\n\}", re.DOTALL)

#: Type of a reward -> keys of what it is built on.
REWARD_PAPERS: Mapping[str, tuple[str, ...]] = {
    "clip_score": ("hessel2021clipscore", "zhai2023sigmoid"),
    "pickscore": ("kirstain2023pick",),
    "ocr": ("li2021trocr",),
}


@cache
def entries() -> Mapping[str, str]:
    """Key -> BibTeX entry, of every paper in ``papers.bib``."""
    text = resources.files("flowhooks.export").joinpath("papers.bib").read_text(encoding="utf-8")
    return {found[1]: found[0] for found in _ENTRY.finditer(text)}


def cited(hooks: Sequence[Mapping[str, Any]]) -> list[str]:
    """BibTeX entries of the papers behind hook blocks and the rewards in them, each once."""
    types = [HOOKS[hook["type"]].papers for hook in hooks if hook["type"] in HOOKS]
    rewards = [REWARD_PAPERS.get(block["type"], ()) for hook in hooks for block in hook.get("rewards", ())]
    return [entries()[key] for key in dict.fromkeys(key for keys in (*types, *rewards) for key in keys)]
