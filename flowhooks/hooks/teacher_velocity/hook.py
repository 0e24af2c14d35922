"""Sets the velocity of a teacher as target: at every state of a view, that of the teacher that its prompt is routed to
(Flow-OPD, arXiv 2605.08063; DiffusionOPD, 2605.15055)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowhooks.adapters.frozen import FrozenAdapter
from flowhooks.documents.imports import imported
from flowhooks.errors import ModelError
from flowhooks.hooks.asking import exact_velocity, visited_velocity
from flowhooks.hooks.frozen_role import check_digests, frozen_role
from flowhooks.hooks.on_policy_rollout.hook import RolloutSource, Visited
from flowhooks.hooks.teacher_velocity import BASE, TeacherVelocitySpec
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import MAIN_VIEW
from flowhooks.kernel.session import Session
from flowhooks.kernel.step import Step
from flowhooks.kernel.view import View
from flowhooks.transfer import picked, whole_numbers

DIRECT, PG_LOGRATIO = "direct", "pg_logratio"


def log_ratio_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``[B]`` whose gradient is, on average over the student's own samples, that of the mean KL divergence per element.

    ``-A grad log pi_S`` with ``A = log pi_T - log pi_S`` of the whole sample, detached.

    Args:
        student: ``[B, ...]`` log densities of the sampled step by element, with gradient.
        teacher: the same of the teacher's step.
    """
    advantage = (teacher - student).flatten(1).sum(1).detach()
    return -advantage * student.flatten(1).mean(1)


class TeacherVelocity(TeacherVelocitySpec, Hook):
    """Sets a teacher's prediction as the target of the main view; teachers are frozen adapters on the one backbone.

    Each has the role ``adapter:<name>``, which other hooks can use too, such as an ``anchor_regularizer``.

    Raises:
        AdapterError: on attaching, a teacher that cannot be read or does not fit.
        ModelError: on attaching, a prompt that is routed to no teacher.
    """

    health = "flow_opd_gap"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sources = {
            name: {
                "pipeline_arguments": None,
                "parked": False,
                **({"path": given} if isinstance(given, str) else given),
            }
            for name, given in self.teachers.items()
        }
        self._function: Callable[[str, Mapping[str, Any]], str] | None = None
        if self.route is not None:
            self._function = _imported(self.route)
        self._teachers: dict[str, FrozenAdapter] = {}

    @contextmanager
    def attached(self, session: Session) -> Iterator[None]:
        drawn: RolloutSource | None = session.source
        known = (drawn.prompt_list if drawn else None) or []
        for prompt in known:
            self._teacher_of(prompt.text, prompt.record)
        with ExitStack() as stack:
            stack.callback(self._teachers.clear)
            for name, source in self.sources.items():
                role = frozen_role(session, name, source["path"], parked=source["parked"])
                self._teachers[name] = stack.enter_context(role)
                if source["pipeline_arguments"] is not None and drawn is not None:
                    drawn.player.prepare(known, drawn.sampling, source["pipeline_arguments"])
            yield

    def views(self, step: Step, views: dict[str, View]) -> dict[str, View]:
        """Evaluates each teacher under its own pipeline arguments."""
        main = views[MAIN_VIEW]
        if not isinstance(main.state, Visited):
            return views
        visit = main.state.visit
        for name, source in self.sources.items():
            if source["pipeline_arguments"] is not None:
                visit = visit.with_arguments(f"adapter:{name}", source["pipeline_arguments"])
        return {**views, MAIN_VIEW: replace(main, state=Visited(visit=visit))}

    def target(self, step: Step, view: View) -> Tensor | None:
        if view.name != MAIN_VIEW:
            return None
        rows = self._rows(step)
        parts = {name: self._velocity(step, view, name, where) for name, where in rows.items()}
        if len(parts) == 1:
            return next(iter(parts.values()))
        order = whole_numbers([i for where in rows.values() for i in where], view.level.device)
        joined = torch.cat(list(parts.values()))
        return torch.empty_like(joined).index_copy(0, order, joined)

    def objective(self, step: Step) -> Tensor:
        view = step.views[MAIN_VIEW]
        if self.estimator == DIRECT:
            return step.mean(step.score(MAIN_VIEW), view.weight)
        if not isinstance(view.state, Visited) or not view.state.visit.transition.deviation:
            raise ValueError("`pg_logratio` scores a stochastic step; use the sampler 'sde' or 'cps'")
        velocities = step.predict(MAIN_VIEW), step.target(MAIN_VIEW)
        visit = view.state.visit.stepped_by(velocities[0])
        student, teacher = (visit.log_density(velocity) for velocity in velocities)
        return step.mean(log_ratio_loss(student, teacher), view.weight)

    def metrics(self, step: Step) -> dict[str, Tensor]:
        """``flow_opd_gap_<teacher>``: how far the student still is, relative to the teacher."""
        student, teacher = step.predict(MAIN_VIEW), step.target(MAIN_VIEW)
        gap = (student - teacher).flatten(1).norm(dim=1) / teacher.flatten(1).norm(dim=1).clamp(min=1e-6)
        found = {f"flow_opd_gap_{name}": picked(gap, where).mean() for name, where in self._rows(step).items()}
        nobody = torch.full((), float("nan"), device=gap.device)
        return {"flow_opd_gap": gap.mean(), **{f"flow_opd_gap_{name}": nobody for name in self.sources}, **found}

    def state_dict(self) -> dict[str, Any]:
        return {"digests": {name: teacher.digest for name, teacher in self._teachers.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_digests(self._teachers, state["digests"], "teacher")

    def _velocity(self, step: Step, view: View, name: str, rows: Sequence[int]) -> Tensor:
        role = "reference" if name == BASE else f"adapter:{name}"
        everyone = len(rows) == view.shape[0]
        if isinstance(view.state, Visited):
            visit = view.state.visit
            return visited_velocity(step, role, visit if everyone else visit.take(rows))
        at = list(rows)
        return exact_velocity(step, role, picked(view.noisy, at), picked(view.level, at), view.condition.take(at))

    def _rows(self, step: Step) -> dict[str, list[int]]:
        """Teacher -> rows of the batch."""
        batch = step.batch
        if not batch.prompts:
            raise ValueError("the batch holds no `prompts` and `records` to route by; give them to Batch(...)")
        rows: dict[str, list[int]] = {}
        for i, prompt in enumerate(batch.prompts):
            rows.setdefault(self._teacher_of(prompt, batch.records[i] if batch.records else {}), []).append(i)
        return rows

    def _teacher_of(self, prompt: str, record: Mapping[str, Any]) -> str:
        if self._function is not None:
            name, how = self._function(prompt, record), "the function of `route` gives"
        else:
            if self.task_column not in record:
                if len(self.sources) == 1 and self.routes is None:
                    return next(iter(self.sources))
                raise ModelError(
                    f"the prompt {prompt!r} has no column {self.task_column!r} to route it by; add it, or set "
                    "`task_column`"
                )
            value = record[self.task_column]
            name = str(value) if self.routes is None else self.routes.get(value, "")
            how = f"its task {value!r} leads to"
        if name not in self.sources and name != BASE:
            raise ModelError(f"the prompt {prompt!r}: {how} no teacher; there are {sorted(self.sources)} and {BASE!r}")
        return name


def _imported(path: str) -> Any:
    try:
        return imported(path, _routes, "function of a prompt and its columns")
    except ImportError as error:
        raise ValueError(f"`route` {path!r} cannot be imported: {error}; expected 'package.module:function'") from error


def _routes(found: Any) -> bool:
    """Whether this is a function, written in Python, that two arguments can be given to."""
    if not inspect.isfunction(found):
        return False
    try:
        inspect.signature(found).bind("a prompt", {})
    except TypeError:
        return False
    return True
