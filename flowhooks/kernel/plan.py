"""What each hook declares, and the plan that follows from it. Free of torch, so that ``check`` can print it at once.

Order comes from ``needs``, ``wants`` and ``gives``, never from the position in the JSON: permuting the hooks of a run
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flowhooks.errors import ConfigError, Problem

#: Slot -> how hooks share it. "one": a second writer is an error. "chain": each sees the one before. "sum": all are
#: added.
SLOTS: Mapping[str, str] = {
    "source": "one",
    "data": "one",
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
#: Given where a loop of somebody else brings the batches, and with them whatever hooks need of the data.
ANY_DATA = "data:*"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What one hook of a run does and relies on.

    Args:
        type: the hook's name in JSON.
        where: JSON path the user wrote it at, or how it was implied.
        method: the method that stands for the hook, as written in JSON; empty for a hook that was written itself.
        slots: names out of :data:`SLOTS`; ``target`` names its view, ``target:main``.
        needs: what somebody must give, such as ``sigma``, ``view:rejected``, ``data:mask``, ``role:reference``;
            ``data:label`` is a name under `columns` of the data sets, whose cells are in ``Batch.records``.
        wants: what this hook comes after when somebody gives it.
        gives: what this hook provides; only one hook may give a thing.
        excludes: what cannot be in one run with this hook, and why: a hook's type, a thing that is given, or a slot ->
            a clause in which ``{name}`` stands for this method or hook and ``{other}`` for the other one.
        passes: (view, role) pairs whose prediction it reads; view ``*`` stands for every view.
        queries: forwards beyond those, at most: what a target or a penalty asks at states of its own; of a source, what
            it takes to draw.
        chunks: of a source, how many it gives.
        rank: place among hooks that nothing else orders.
    """

    type: str
    where: str
    method: str = ""
    slots: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    wants: frozenset[str] = frozenset()
    gives: frozenset[str] = frozenset()
    excludes: Mapping[str, str] = field(default_factory=dict, hash=False)
    passes: tuple[tuple[str, str], ...] = ()
    queries: int = 0
    chunks: int = 1
    rank: tuple = ()

    @property
    def name(self) -> str:
        """What the user knows the hook as: its method, or its own type."""
        return f"`{self.method or self.type}`"


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
        return sum(each.queries for each in self.order if "source" not in each.slots) - self.on_data

    @property
    def rollout_forwards(self) -> int:
        """Forwards of the network that the rollout of a step makes, before its first chunk."""
        return sum(declaration.queries for declaration in self.order if "source" in declaration.slots)

    @property
    def on_data(self) -> int:
        """Forwards of the chunk that a run which draws spends on its data; 0 where nothing is drawn."""
        if not any("source" in each.slots for each in self.order):
            return 0
        return sum(each.queries for each in self.order if "data" in each.slots)

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
        provides: what the surroundings give: ``data:image``, ``data:rejected``, ``data:mask``, ``data:<name>`` for a
            name under `columns`, ``data:*`` for all of them, ``role:reference``, ``role:ema``.
        imply: (need, JSON path of who needs it) -> the default hook that gives it, or None.
        where: file named in errors.

    Raises:
        ConfigError: two writers of a one-slot, two givers of one thing, hooks that exclude each other, a need that
            nobody meets, or a circle; all at once.
    """
    given = frozenset(provides)
    hooks, sources = list(declarations), list(range(len(declarations)))
    _add_implied(hooks, sources, given, imply)
    problems = [*_clashes(hooks, where), *_unmet(hooks, given, where), *_idle(hooks, where)]
    if problems:
        raise ConfigError(problems)
    ranking = _order(hooks, where)
    order = tuple(hooks[i] for i in ranking)
    views = (MAIN_VIEW, *(g.removeprefix("view:") for d in order for g in sorted(d.gives) if g.startswith("view:")))
    origin = tuple(sources[i] if sources[i] >= 0 else None for i in ranking)
    return Plan(order=order, sources=origin, views=views, passes=_passes(order, views))


def _add_implied(hooks: list[Declaration], sources: list[int], given: frozenset[str], imply: Callable) -> None:
    """Append the default giver of each unmet need; a source hook brings its own sigma, everything else needs one."""
    pending = [("sigma", "every run", "")] if not any("source" in d.slots for d in hooks) else []
    pending += [(need, d.where, d.method) for d in hooks for need in sorted(d.needs)]
    while pending:
        need, who, method = pending.pop(0)
        if need in given or any(need in d.gives for d in hooks):
            continue
        implied = imply(need, who)
        if implied is not None:
            hooks.append(replace(implied, method=method))
            sources.append(-1)
            pending += [(n, implied.where, method) for n in sorted(implied.needs)]


#: What two hooks clash over, in the order in which a reason is preferred -> the reason, when neither hook states one.
_CLASHES: Mapping[str, str] = {
    "objective": "each brings a loss that takes the place of the ordinary one, and a run has one such loss",
    "target": "each says what the network should predict, and a prediction has one target",
    "reduce": "each says how the error of a sample becomes one number, and a run has one way",
    "source": "each draws the samples that it trains on, and a step has one rollout",
    "data": "each trains on the data beside a rollout, and a step has one such part",
    "sigma": "each chooses the noise levels of the samples, and a sample has one",
}


def _clashes(hooks: Sequence[Declaration], where: str | None) -> list[Problem]:
    """One problem for each two methods, or hooks, that cannot be in one run; a reason that a hook states goes first."""
    problems: dict[frozenset[str], Problem] = {}
    pairs = [(first, second) for i, second in enumerate(hooks) for first in hooks[:i]]
    for first, second in pairs:
        for hook, other in ((second, first), (first, second)):
            reason = _stated(hook, other)
            if reason is not None:
                problems.setdefault(_pair(first, second), _clash(other, hook, reason, where))
    over = {pair: _claims(pair[0]) & _claims(pair[1]) for pair in pairs}
    for slot, reason in [*_CLASHES.items(), ("", "")]:
        for (first, second), claims in over.items():
            taken = sorted(claim for claim in claims if not slot or claim.split(":")[0] == slot)
            if taken:
                words = reason or f"each gives {taken[0]!r}, and a run has one"
                problems.setdefault(_pair(first, second), _clash(first, second, words, where))
    return list(problems.values())


def _pair(first: Declaration, second: Declaration) -> frozenset[str]:
    return frozenset({first.method or first.where, second.method or second.where})


def _claims(hook: Declaration) -> frozenset[str]:
    """What only one hook of a run may write or give."""
    return frozenset(s for s in hook.slots if SLOTS[s.split(":")[0]] == "one") | hook.gives


def _stated(hook: Declaration, other: Declaration) -> str | None:
    """Why ``hook`` says that it cannot be in one run with ``other``."""
    for what, reason in hook.excludes.items():
        if what == other.type or what in other.gives or what in other.slots:
            return reason.format(name=hook.name, other=other.name)
    return None


def _clash(first: Declaration, second: Declaration, reason: str, where: str | None) -> Problem:
    if first.method and second.method:
        message = (
            f"{first.name} and {second.name} cannot be trained in one run: {reason}; train one after the other, the "
            "second run with the first one's result as `adapter.init_from`"
        )
    else:
        message = f"{second.name} cannot be in one run with {first.name} (at {first.where}): {reason}; remove one"
    return Problem(message, file=where, path=second.where)


_WORDS = {
    "data:image": "images",
    "data:rejected": "a rejected side of the data",
    "data:mask": "masks in the data",
    "role:reference": "a reference",
    "role:ema": "an average of the weights",
}
_REMEDY = {
    "data:rejected": "add a conditioning data set with conditioning_type 'reference_strict' and name it in "
    "conditioning_data, or name a column of the images' own table in rejected_column",
    "data:mask": "add a conditioning data set with conditioning_type 'mask' or 'segmentation' and name it in "
    "conditioning_data, or name a column of the images' own table in mask_column",
    "data": "name the column that holds it under {name!r} in the `columns` of every image data set",
    "role:reference": "the reference is the model with its adapter off, so give the run an 'adapter' section",
    "role:ema": "set training.use_ema to true",
    "role:adapter": "name it in the `teachers` of a teacher_velocity hook, or use 'reference' or 'ema'",
}


def _unmet(hooks: Sequence[Declaration], given: frozenset[str], where: str | None) -> list[Problem]:
    available = given | {g for d in hooks for g in d.gives}
    problems = []
    for d in hooks:
        for need in sorted(d.needs - available):
            if ANY_DATA in given and need.startswith("data:"):
                continue
            kind, _, name = need.rpartition(":")
            remedy = _REMEDY.get(need, _REMEDY.get(kind, "add a hook that gives it")).format(name=name)
            message = f"{d.name} needs {_WORDS.get(need, repr(need))}, which nothing in this run gives; {remedy}"
            problems.append(Problem(message, file=where, path=d.where))
    return problems


def _idle(hooks: Sequence[Declaration], where: str | None) -> list[Problem]:
    """A drawn state has no clean image and noise, so somebody must say what to learn from it."""
    if any(slot in ("objective", "target:main") for d in hooks for slot in d.slots):
        return []
    message = (
        "draws samples, and nothing in this run learns from them; name a method that does: flow_opd, flow_grpo or "
        "adjoint_matching"
    )
    return [Problem(f"{d.name} {message}", file=where, path=d.where) for d in hooks if "source" in d.slots]


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
