"""The papers behind the hooks, for the model card's citation. The entries are in ``papers.bib``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

_ENTRY = re.compile(r"@\w+\{(\w+),.*?\n\}", re.DOTALL)

#: Type of a hook -> keys of what it is built on.
PAPERS: Mapping[str, tuple[str, ...]] = {
    "flow_dpo": ("liu2025improving", "wallace2023diffusion"),
    "target_replacer": ("gu2026anyflow", "geng2025mean", "frans2024one"),
    "distribution_matching": ("gu2026anyflow", "yin2023one", "yin2024improved"),
    "dual_times": ("chefer2026self",),
    "on_policy_rollout": ("liu2025flowgrpo", "wang2025coefficients"),
    "teacher_velocity": ("fang2026flowopd", "li2026diffusionopd"),
    "flow_grpo": ("liu2025flowgrpo",),
    "adjoint_target": ("guo2026improved", "domingoenrich2024adjoint"),
    "twin_flow_target": ("cheng2025twinflow",),
    "twin_flow": ("cheng2025twinflow",),
    "feature_alignment": ("yu2024representation", "hwang2025cross", "haghighi2025layersync"),
}
#: Type of a reward -> the same.
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
    types = [PAPERS.get(hook["type"], ()) for hook in hooks]
    rewards = [REWARD_PAPERS.get(block["type"], ()) for hook in hooks for block in hook.get("rewards", ())]
    return [entries()[key] for key in dict.fromkeys(key for keys in (*types, *rewards) for key in keys)]
