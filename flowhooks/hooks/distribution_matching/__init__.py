"""Distribution matching: options and declarations of the hook. The maths is in ``dmd``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import FLOW_MAP, SHIFT, HookSpec

#: The value of `student` that trains a flow map, and the most jumps of one.
FLOW_MAP_STUDENT, MOST_JUMPS = "flow_map", 3
#: Least sigma at which samples are judged that no step follows: a clean one tells teacher and critic apart by nothing.
LEAST = 0.02


class DistributionMatchingSpec(HookSpec, type="distribution_matching", title="Distribution matching"):
    """Trains a student of few steps on its own samples and moves them towards the teacher's."""

    slots = {"penalty", "metrics"}
    papers = ("gu2026anyflow", "yin2023one", "yin2024improved")
    page = "dmd.md"
    whole_path = "weight"
    conditions = [
        {
            "if": {"properties": {"student": {"const": FLOW_MAP_STUDENT}}},
            "then": {"properties": {"jumps": {"maximum": MOST_JUMPS}}},
        }
    ]

    weight: float = option(
        "Weight of the loss on the samples. 0 switches the hook off, critic included.",
        default=1.0,
        minimum=0,
        maximum=1_000_000,
    )
    student: Literal["flow_map", "renoise", "euler"] = option(
        "How the policy samples. `flow_map`: jumps over intervals, beside the hooks that train a flow map. `renoise` "
        "and `euler`: steps of a network as it is, for which this is the whole loss; after each `renoise` adds fresh "
        "noise to the sample that the network predicts, and `euler` goes on along its velocity.",
        default="flow_map",
    )
    jumps: int = option(
        "Most steps from noise to data. How many a sample takes is random, the same on all processes: `flow_map` goes "
        "the whole way in so many, at most 3; the others stop on the way, where the network predicts the sample.",
        default=2,
        minimum=1,
        maximum=16,
    )
    shift: float | str = option(
        "Shift of the steps' grid: a number, or `scheduler` for the value of the pipeline's own scheduler.",
        default="scheduler",
        schema=SHIFT,
    )
    judged_shift: float | str | None = option(
        "Shift of the sigmas at which samples are judged, as `shift` takes it; `null` takes `shift`.",
        default=None,
        schema=SHIFT,
    )
    judged_from: float | None = option(
        "Least sigma at which samples are judged. `null` is that of the student's next step, which hides what is "
        "finer, and 0.02 where none follows.",
        default=None,
        minimum=0,
        maximum=1,
    )
    judged_to: float = option("Largest sigma at which samples are judged.", default=0.98, minimum=0, maximum=1)
    teacher_guidance: float = option(
        "Guidance scale of the teacher, which the student learns; 1 is none, and costs no forward.",
        default=1.0,
        minimum=1,
        maximum=1_000,
    )
    policy_every: int = option(
        "The policy learns by this loss in every n-th optimiser step, the critic in each.",
        default=1,
        minimum=1,
        # A run whose first ten updates leave something untrained is taken for broken.
        maximum=8,
    )
    critic_rank: int = option(
        "Rank of the critic, a second adapter that is trained on the samples.", default=16, minimum=1, maximum=65_536
    )
    critic_alpha: float | None = option(
        "The critic's update is scaled by `alpha / rank`; `null` takes the rank, a scale of 1.",
        default=None,
        exclusiveMinimum=0,
        maximum=1_000_000,
    )

    def declares(self) -> Mapping[str, Any]:
        if not self.weight:
            return {}
        common = {
            "excludes": {"rollout": FLOW_MAP},
            "gives": {"role:critic"},
            # The student's steps, the teacher, with and without prompts, the critic, and it again where it is trained.
            "queries": self.jumps + 3 + (self.teacher_guidance != 1),
        }
        if self.student == FLOW_MAP_STUDENT:
            return {**common, "needs": {"second_time", "role:reference"}}
        return {
            **common,
            "slots": {"objective", "penalty", "metrics"},
            "needs": {"data:image", "role:reference"},
            "excludes": {
                "rollout": "{name} walks to samples of its own, and {other} visits the states of another rollout",
                "r_sigma": "{name} with this `student` trains the network at one time, and {other} at intervals",
                "token_sigma": "{name} trains on samples of the policy, and {other} on noised images of the data",
            },
        }

    def refusal(self) -> str | None:
        if self.student == FLOW_MAP_STUDENT and self.jumps > MOST_JUMPS:
            return (
                f"`jumps` is {self.jumps}; a `flow_map` is trained in at most {MOST_JUMPS}, which are played each step"
            )
        least = LEAST if self.judged_from is None else self.judged_from
        if least >= self.judged_to:
            return f"`judged_from`, {least:g}, is not below `judged_to`, {self.judged_to:g}"
        return None

    def unprompted(self) -> bool:
        return self.teacher_guidance != 1
