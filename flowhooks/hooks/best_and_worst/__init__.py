"""Pairs of scored samples: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from flowhooks.documents.spec import option
from flowhooks.hooks.ends import WHOLE_SAMPLES
from flowhooks.hooks.spec import HookSpec


class BestAndWorstSpec(HookSpec, type="best_and_worst", title="Best and worst"):
    """Makes a pair of every group of scored samples: the best is the preferred side, the worst the rejected one."""

    slots = {"views", "metrics"}
    needs = {"ends", "sigma"}
    gives = {"view:rejected"}
    excludes = {
        "paired_views": "{name} makes pairs of generated samples, and {other} takes those of the data",
        "rollout": WHOLE_SAMPLES,
    }
    page = "online_dpo.md"

    min_gap: float = option(
        "Groups whose best and worst rewards are closer than this are left out; groups of equal rewards always are.",
        default=0.0,
        minimum=0,
        maximum=1_000_000_000,
    )
