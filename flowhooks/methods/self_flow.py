"""Self-Flow: two noise levels in one sample, and the averaged weights on the cleaner one as a teacher."""

from __future__ import annotations

from flowhooks.hooks.dual_times import DualTimesSpec
from flowhooks.hooks.feature_alignment import DECAYING, FeatureAlignmentSpec
from flowhooks.methods.spec import Method, Part

_STUDENT = (
    "The student's block: its number, counted from 0 in running order over all of the network's blocks, or its module "
    "name."
)
_BLOCK = {"type": ["integer", "string"], "default": ...}


class SelfFlowMethod(Method, type="self_flow", title="Self-Flow method"):
    """Self-Flow: two noise levels in one sample, and a cleaner view of the averaged weights as a teacher of features.
    Expands to dual_times and feature_alignment."""

    parts = (
        Part(hook=DualTimesSpec),
        Part(
            hook=FeatureAlignmentSpec,
            without=("encoder", "adjacent_distance", "adjacent_tau"),
            changes={
                "block_index": {**_BLOCK, "description": _STUDENT},
                "teacher_block_index": {
                    **_BLOCK,
                    "description": "The teacher's block, by number or module name; usually a deeper one.",
                },
            },
            fixed={"source": "self_flow"},
        ),
    )
    conditions = (DECAYING,)
