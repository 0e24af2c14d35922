"""DMD: a student of few steps whose samples move towards the teacher's."""

from __future__ import annotations

from flowhooks.hooks.distribution_matching import DistributionMatchingSpec
from flowhooks.methods.spec import Method, Part

_STUDENT = (
    "How the student samples: `euler` goes on along the velocity, as pipelines do; `renoise` adds fresh noise to the "
    "sample that each step predicts."
)


class DMDMethod(Method, type="dmd", title="DMD method"):
    """Distribution matching distillation: few steps without guidance that look like many with it. Expands to
    distribution_matching."""

    parts = (
        Part(
            hook=DistributionMatchingSpec,
            without=("weight",),
            changes={
                "student": {"enum": ["euler", "renoise"], "default": "euler", "description": _STUDENT},
                "jumps": {
                    "default": 4,
                    "description": "Steps from noise to data; each update trains a random one of them.",
                },
                "policy_every": {"default": 5},
            },
        ),
    )
