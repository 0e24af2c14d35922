"""Online DPO: rewards choose the best and the worst of the model's own samples as a pair."""

from __future__ import annotations

from flowhooks.hooks.best_and_worst import BestAndWorstSpec
from flowhooks.hooks.ends import EndsSpec
from flowhooks.hooks.flow_dpo import FlowDPOSpec
from flowhooks.hooks.mask_reducer import MaskReducerSpec
from flowhooks.methods.preference import PreferenceMethod, preference_parts
from flowhooks.methods.spec import Part

_NORM_TYPE = "How the error of a sample becomes one number: `sum` and `mean` go over all latent elements."


def _unmasked() -> tuple[Part, ...]:
    """Return the parts of Flow-DPO for samples that have no masks."""
    objective, *others = (part for part in preference_parts(FlowDPOSpec) if part.hook is not MaskReducerSpec)
    changes = {"norm_type": {"enum": ["sum", "mean"], "description": _NORM_TYPE}}
    return (Part(hook=objective.hook, changes=changes), *others)


class OnlineDPOMethod(PreferenceMethod, type="online_dpo", title="Online DPO method"):
    """Online DPO: the best and the worst of each group of the model's own samples, by rewards, are a pair of Flow-DPO.
    Expands to ends, best_and_worst, flow_dpo and anchor_regularizer."""

    parts = (
        Part(hook=EndsSpec, changes={"group_size": {"default": 4, "minimum": 2}}),
        Part(hook=BestAndWorstSpec),
        *_unmasked(),
    )
