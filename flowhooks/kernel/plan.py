"""What each hook declares, and the plan that follows from it. Free of torch, so that ``check`` can print it at once.

Order comes from ``needs``, ``wants`` and ``gives``, never from the position in the JSON: permuting the hooks of a run
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flowhooks.errors import ConfigError, Problem

#: Slot -> how hooks share it. "one": a second writer is an error. "chain": each sees the one before. "sum": all are
#: added.
SLOTS: Mapping[str, str] = {
    "source": "one",
    "views": "chain",
    "target": "one",
    "error": "chain",
    "reduce": "one",
    "objective": "one",
    "penalty": "sum",
    "metrics": "sum",
}

MAIN_VIEW = "main"
POLICY = "policy"
EVERY_VIEW = "*"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What one hook of a run does and relies on.

    Args:
        type: the hook's name in JSON.
        where: JSON path the user wrote it at, or how it was implied.
        slots: names out of :data:`SLOTS`; ``target`` names its view, ``target:main``.
        needs: what somebody must give, such as ``sigma``, ``view:rejected``, ``data:mask``, ``role:reference``.
        wants: what this hook comes after when somebody gives it.
        gives: what this hook provides; only one hook may give a thing.
        excludes: types of hooks that cannot be in one run with this one.
        because: why not, a sentence.
        passes: (view, role) pairs whose prediction it reads; view ``*`` stands for every view.
        queries: forwards beyond those, at most: what a target or a penalty asks at states of its own; of a source, what
            it takes to draw.
        chunks: of a source, how many it gives.
        rank: place among hooks that nothing else orders.
    """

    type: str
    where: str
    slots: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()
    excludes: frozenset[str] = frozenset()
    because: str = ""
    passes: tuple[tuple[str, str], ...] = ()
    queries: int = 0
    chunks: int = 1
    rank: tuple = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Hooks in the order they run, and the forwards a step costs.

    Args:
        order: declarations, providers first.
        sources: index into the input of :func:`plan` for each of ``order``; ``None`` for a hook that was implied.
        views: names of the views a step holds.
        passes: distinct (view, role) pairs, the policy's first.
    """

    order: tuple[Declaration, ...]
    sources: tuple[int | None, ...]
    views: tuple[str, ...]
    passes: tuple[tuple[str, str], ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """Distinct roles; with views batched, one forward each."""
        return tuple(dict.fromkeys(role for _, role in self.passes))

    @property
    def queries(self) -> int:
        """Forwards of a chunk beyond its passes, at most."""
        return sum(declaration.queries for declaration in self.order if "source" not in declaration.slots)

    @property
    def drawing(self) -> int:
        """Forwards of a step before its chunks: what it takes to draw."""
        return sum(declaration.queries for declaration in self.order if "source" in declaration.slots)

    @property
    def chunks(self) -> int:
        """Parts of a step with a backward of their own."""
        return max((declaration.chunks for declaration in self.order), default=1)

    def table(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Rows (slot, rule, hooks in order) for every slot; a slot without hooks runs the engine's default."""
        rows = []
        for slot, rule in SLOTS.items():
            owners = [d.type for d in self.order if any(s.split(":")[0] == slot for s in d.slots)]
            rows.append((slot, rule, tuple(owners)))
        return rows


def plan(
    declarations: Sequence[Declaration],
    provides: Iterable[str],
    *,
    imply: Callable[[str, str], Declaration | None] = lambda need, where: None,
    where: str | None = None,
) -> Plan:
    """Complete, check and order the hooks of a run.

    Args:
        declarations: one for each hook of the run.
        provides: what the surroundings give: ``data:image``, ``data:rejected``, ``data:mask``, ``role:reference``,
            ``role:ema``.
        imply: (need, JSON path of who needs it) -> the default hook that gives it, or None.
        where: file named in errors.

    Raises:
        ConfigError: two writers of a one-slot, two givers of one thing, hooks that exclude each other, a need that
            nobody meets, or a circle; all at once.
    """
    given = frozenset(provides)
    hooks, sources = list(declarations), list(range(len(declarations)))
    _add_implied(hooks, sources, given, imply)
    problems = [*_conflicts(hooks, where), *_excluded(hooks, where), *_unmet(hooks, given, where)]
    if problems:
        raise ConfigError(problems)
    ranking = _order(hooks, where)
    order = tuple(hooks[i] for i in ranking)
    views = (MAIN_VIEW, *(g.removeprefix("view:") for d in order for g in sorted(d.gives) if g.startswith("view:")))
    origin = tuple(sources[i] if sources[i] >= 0 else None for i in ranking)
    return Plan(order=order, sources=origin, views=views, passes=_passes(order, views))


def _add_implied(hooks: list[Declaration], sources: list[int], given: frozenset[str], imply: Callable) -> None:
    """Append the default giver of each unmet need; a source hook brings its own sigma, everything else needs one."""
    pending = [("sigma", "every run")] if not any("source" in d.slots for d in hooks) else []
    pending += [(need, d.where) for d in hooks for need in sorted(d.needs)]
    while pending:
        need, who = pending.pop(0)
        if need in given or any(need in d.gives for d in hooks):
            continue
        implied = imply(need, who)
        if implied is not None:
            hooks.append(implied)
            sources.append(-1)
            pending += [(n, implied.where) for n in sorted(implied.needs)]


def _conflicts(hooks: Sequence[Declaration], where: str | None) -> list[Problem]:
    claims: dict[str, Declaration] = {}
    problems = []
    for hook in hooks:
        singles = {f"slot {s!r}" for s in hook.slots if SLOTS[s.split(":")[0]] == "one"}
        for claim in sorted(singles | {f"{g!r}" for g in hook.gives}):
            first = claims.setdefault(claim, hook)
            if first is not hook:
                message = (
                    f"{hook.type!r} and {first.type!r} (at {first.where}) both write {claim}, which takes one writer; "
                    "remove one of the two"
                )
                problems.append(Problem(message, file=where, path=hook.where))
    return problems


def _excluded(hooks: Sequence[Declaration], where: str | None) -> list[Problem]:
    problems = []
    for hook in hooks:
        for other in (each for each in hooks if each is not hook and each.type in hook.excludes):
            message = f"{hook.type!r} cannot run beside {other.type!r} (at {other.where}): {hook.because}; remove one"
            problems.append(Problem(message, file=where, path=hook.where))
    return problems


_REMEDY = {
    "data:rejected": "add a conditioning data set with conditioning_type 'reference_strict' and name it in "
    "conditioning_data, or name a column of the images' own table in rejected_column",
    "data:mask": "add a conditioning data set with conditioning_type 'mask' or 'segmentation' and name it in "
    "conditioning_data, or name a column of the images' own table in mask_column",
    "role:reference": "the reference is the model with its adapter off, so give the run an 'adapter' section",
    "role:ema": "set training.use_ema to true",
    "role:adapter": "name it in the `teachers` of a teacher_velocity hook, or use 'reference' or 'ema'",
}


def _unmet(hooks: Sequence[Declaration], given: frozenset[str], where: str | None) -> list[Problem]:
    available = given | {g for d in hooks for g in d.gives}
    problems = []
    for d in hooks:
        for need in sorted(d.needs - available):
            remedy = _REMEDY.get(need, _REMEDY.get(need.rpartition(":")[0], "add a hook that gives it"))
            message = f"{d.type!r} needs {need!r}, which nothing in this run gives; {remedy}"
            problems.append(Problem(message, file=where, path=d.where))
    return problems


def _order(hooks: Sequence[Declaration], where: str | None) -> list[int]:
    """Topological order of indices; ties go by rank, so the order written in JSON never matters."""
    before = {
        i: {j for j, other in enumerate(hooks) if j != i and other.gives & (hook.needs | hook.wants)}
        for i, hook in enumerate(hooks)
    }
    order: list[int] = []
    while len(order) < len(hooks):
        ready = [i for i in before if i not in order and before[i] <= set(order)]
        if not ready:
            circle = [hooks[i] for i in before if i not in order]
            names = ", ".join(f"{d.type!r} ({d.where})" for d in circle)
            raise ConfigError(Problem(f"these hooks wait for each other: {names}", file=where, path=circle[0].where))
        order.append(min(ready, key=lambda i: (hooks[i].rank, hooks[i].type)))
    return order


def _passes(order: Sequence[Declaration], views: Sequence[str]) -> tuple[tuple[str, str], ...]:
    asked = [
        (name, role) for d in order for view, role in d.passes for name in (views if view == EVERY_VIEW else (view,))
    ]
    if not any("objective" in d.slots for d in order):
        asked.append((MAIN_VIEW, POLICY))
    return tuple(sorted(dict.fromkeys(asked), key=lambda pair: (pair[1] != POLICY, pair[1], views.index(pair[0]))))
