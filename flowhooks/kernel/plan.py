"""Define declarations of hooks, and plans of them. Free of torch, so that ``check`` can print a plan at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Slot -> how hooks share it. "one": a second hook is an error. "chain": each gets the previous result. "sum": all are
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
#: Given where the user's own loop supplies the batches, and with them whatever hooks need of the data.
ANY_DATA = "data:*"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """Declares what one hook of a run does and relies on.

    Args:
        type: the hook's name in JSON.
        where: JSON path at which the user wrote it, or how it was implied.
        method: the method that the hook belongs to, as written in JSON; empty for a hook that the run names itself.
        slots: names out of :data:`SLOTS`; ``target`` names its view, ``target:main``.
        needs: what data or another hook must give, such as ``sigma``, ``view:rejected``, ``data:mask``,
            ``role:reference``; ``data:label`` is a name under `columns` of the data sets, whose cells are in
            ``Batch.records``.
        wants: what this hook must come after, if anything gives it.
        gives: what this hook provides; only one hook may give a thing.
        excludes: what cannot be in one run with this hook, and why: a hook's type, a thing that is given, or a slot ->
            a clause in which ``{name}`` stands for this method or hook and ``{other}`` for the other one.
        passes: (view, role) pairs whose prediction it reads; view ``*`` means every view.
        queries: largest number of further forwards: those of a target or a penalty at states of its own; for a source,
            those of the rollout.
        chunks: for a source, the number of chunks it returns.
        rank: place among hooks that nothing else orders.
        options: complete keyword arguments of the hook's class.
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
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Holds hooks in the order they run, and the forwards of a step.

    Args:
        order: declarations, providers first; given ones are the same objects.
        passes: distinct (view, role) pairs, the policy's first.
    """

    order: tuple[Declaration, ...]
    passes: tuple[tuple[str, str], ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """Return the distinct roles; with views batched, one forward each."""
        return tuple(dict.fromkeys(role for _, role in self.passes))
