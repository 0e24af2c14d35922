"""DMD: a student of few steps whose samples move towards the teacher's."""

from __future__ import annotations

from flowhooks.hooks.distribution_matching import DistributionMatchingSpec
from flowhooks.methods.spec import Method, Part

_STUDENT = (
    "How the student samples: `renoise` adds fresh noise to the sample that each step predicts, `euler` goes on along "
    "the velocity."
)


class DMDMethod(Method, type="dmd", title="DMD method"):
    """Distribution matching distillation: few steps without guidance that look like many with it. Expands to
    distribution_matching."""

    parts = (
        Part(
            hook=DistributionMatchingSpec,
            without=("weight",),
            changes={
                "student": {"enum": ["renoise", "euler"], "default": "renoise", "description": _STUDENT},
                "jumps": {
                    "default": 4,
                    "description": "Steps from noise to data; each update trains a random one of them.",
                },
                "policy_every": {"default": 2},
            },
        ),
    )
