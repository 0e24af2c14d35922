"""Frozen adapters as teachers: options and declarations of the hook. Maths and class are in ``hook``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flowhooks.documents.spec import option
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import POLICY

#: The teacher that stands for the model without an adapter.
BASE = "base"


class TeacherVelocitySpec(HookSpec, type="teacher_velocity", title="Teacher velocity"):
    """Sets as target what a teacher, a frozen adapter on the same network, predicts at the same state."""

    slots = {"views", "target:main", "objective", "metrics"}
    needs = {"sigma", "role:reference"}
    wants = {"rollout"}
    passes = (("main", POLICY),)
    papers = ("fang2026flowopd", "li2026diffusionopd")
    page = "flow_opd.md"
    words = {"gives": "`role:adapter:<name>`"}

    teachers: Mapping[str, Any] = option(
        "Name of each teacher with the file, folder or Hub id of its adapter, or with an object: `path`, "
        "`pipeline_arguments` in place of the rollout's, and `parked`, which keeps it on the CPU while it is not "
        "used.",
        minProperties=1,
        propertyNames={"pattern": "^[A-Za-z0-9_-]+$"},
        additionalProperties={
            "type": ["string", "object"],
            "format": "path",
            "minLength": 1,
            "required": ["path"],
            "properties": {
                "path": {
                    "description": "File, folder or Hub id of the adapter.",
                    "type": "string",
                    "format": "path",
                    "minLength": 1,
                },
                "pipeline_arguments": {
                    "description": "Used in place of the rollout's, such as `guidance_scale`.",
                    "type": ["object", "null"],
                    "default": None,
                },
                "parked": {
                    "description": "Keep it on the CPU while it is not used.",
                    "type": "boolean",
                    "default": False,
                },
            },
            "additionalProperties": False,
            "patternProperties": {"^(\\$comment$|_comment)": {"description": "A remark for people; it is ignored."}},
        },
    )
    task_column: str = option("The column of the prompts that names the teacher.", default="task", minLength=1)
    routes: Mapping[str, Any] | None = option(
        "Value of that column -> name of a teacher, or `base`. `null`: the value is the teacher's name.",
        default=None,
        additionalProperties={"type": "string"},
    )
    route: str | None = option(
        "`package.module:function` that is given a prompt and its columns and returns a teacher's name, in place of "
        "`task_column` and `routes`. It needs `--allow-imports`.",
        default=None,
    )
    estimator: Literal["direct", "pg_logratio"] = option(
        "`direct`: squared distance of velocities. `pg_logratio`: the log density of the step that was taken, "
        "weighed by minus its log ratio; the same gradient on average, with noise.",
        default="direct",
    )

    def declares(self) -> Mapping[str, Any]:
        return {
            "gives": {f"role:adapter:{name}" for name in self.teachers},
            # Prompts of one batch may be routed to all of them, and to the base.
            "queries": len(self.teachers) if self.routes is None else len(set(self.routes.values())),
        }

    def refusal(self) -> str | None:
        if not self.teachers or BASE in self.teachers:
            return f"`teachers` must name one or more adapters, none of them {BASE!r}; got {list(self.teachers)}"
        unknown = sorted(set((self.routes or {}).values()) - {*self.teachers, BASE})
        if unknown:
            return f"`routes` lead to {unknown[0]!r}, which is none of the teachers {sorted(self.teachers)}"
        return None
