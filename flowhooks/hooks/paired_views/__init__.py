"""The rejected side of each pair as a view: options and declarations of the hook. The class is in ``hook``."""

from __future__ import annotations

from flowhooks.hooks.spec import PAIRS, HookSpec


class PairedViewsSpec(HookSpec, type="paired_views", title="Paired views"):
    """Adds the rejected side of each pair, with the noise, sigma and prompt of the preferred side. Added by itself
    where a hook needs it."""

    slots = {"views"}
    needs = {"sigma", "data:rejected"}
    wants = {"mask", "r_sigma", "token_sigma"}
    gives = {"view:rejected"}
    excludes = {"rollout": PAIRS}
    implied_by = ("view:rejected",)
    page = "flow_dpo.md"
