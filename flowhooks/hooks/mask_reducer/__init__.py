"""Masks of the data on the error: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec


class MaskReducerSpec(HookSpec, type="mask_reducer", title="Mask reducer"):
    """Weighs the error of every view by the masks of the data: white trains, grey weighs, black is left alone."""

    slots = {"views", "error", "metrics"}
    needs = {"data:mask"}
    gives = {"mask"}
    excludes = {"rollout": "a mask belongs to an image of the data, and {other} trains on samples that it generates"}
    page = "flow_dpo.md"

    mask_dilate: int = option(
        "Cells of the latent grid by which the mask grows on every side.", default=0, minimum=0, maximum=100_000
    )
