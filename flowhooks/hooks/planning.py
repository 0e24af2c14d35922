"""Orders the hooks of a run, adds those they imply, and counts what a step of them costs. Free of torch.

Order comes from ``needs``, ``wants`` and ``gives``, never from the position in the JSON: permuting the hooks of a run
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowhooks.errors import ConfigError, Problem, in_file
from flowhooks.hooks.blocks import hook_defaults
from flowhooks.hooks.reasons import faults
from flowhooks.hooks.registry import imply
from flowhooks.kernel.plan import EVERY_VIEW, MAIN_VIEW, POLICY, SLOTS, Declaration, Plan


def plan_hooks(
    declarations: Sequence[Declaration],
    provides: Iterable[str],
    *,
    where: str = "",
    defaults: Callable[[str], Mapping[str, Any]] = hook_defaults,
) -> Plan:
    """Return the hooks of a run in order, with those they imply.

    Args:
        declarations: one for each hook of the run.
        provides: what data and training give to hooks: ``data:image``, ``data:rejected``, ``data:mask``,
            ``data:<name>`` for a name under `columns`, ``data:*`` for all of them, ``role:reference``, ``role:ema``.
        where: file named in errors.
        defaults: type of a hook -> its options where it is implied.

    Raises:
        ConfigError: two writers of a one-slot, two givers of one thing, hooks that exclude each other, a need that
            no hook meets, or a circle; all at once.
    """
    given = frozenset(provides)
    with in_file(where):
        hooks = _with_implied(declarations, given, imply(defaults))
        if problems := faults(hooks, given):
            raise ConfigError(problems)
        order = _order(hooks)
    views = (MAIN_VIEW, *(g.removeprefix("view:") for d in order for g in sorted(d.gives) if g.startswith("view:")))
    return Plan(order=order, passes=_passes(order, views))


def _with_implied(declarations: Sequence[Declaration], given: frozenset[str], imply: Callable) -> list[Declaration]:
    """Adds the default giver of each unmet need. A source hook brings its own sigma; every other run needs a giver."""
    hooks = list(declarations)
    pending = [("sigma", "every run", "")] if not any("source" in d.slots for d in hooks) else []
    pending += [(need, d.where, d.method) for d in hooks for need in sorted(d.needs)]
    while pending:
        need, who, method = pending.pop(0)
        if need in given or any(need in d.gives for d in hooks):
            continue
        implied = imply(need, who)
        if implied is not None:
            hooks.append(replace(implied, method=method))
            pending += [(n, implied.where, method) for n in sorted(implied.needs)]
    return hooks


def _order(hooks: Sequence[Declaration]) -> tuple[Declaration, ...]:
    """Providers first; ties go by rank, so the order written in JSON never matters."""
    order: list[Declaration] = []
    waiting = sorted(hooks, key=lambda hook: (hook.rank, hook.type))
    while waiting:
        ready = [
            hook
            for hook in waiting
            if not any(other.gives & (hook.needs | hook.wants) for other in waiting if other is not hook)
        ]
        if not ready:
            circle = [hook for hook in hooks if hook in waiting]
            names = ", ".join(f"{d.type!r} ({d.where})" for d in circle)
            raise ConfigError(Problem(f"these hooks wait for each other: {names}", path=circle[0].where))
        waiting.remove(ready[0])
        order.append(ready[0])
    return tuple(order)


def _passes(order: Sequence[Declaration], views: Sequence[str]) -> tuple[tuple[str, str], ...]:
    asked = [
        (name, role) for d in order for view, role in d.passes for name in (views if view == EVERY_VIEW else (view,))
    ]
    if not any("objective" in d.slots for d in order):
        asked.append((MAIN_VIEW, POLICY))
    return tuple(sorted(dict.fromkeys(asked), key=lambda pair: (pair[1] != POLICY, pair[1], views.index(pair[0]))))


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Forwards of the network that a step makes, at most, and what they are for.

    Args:
        rollout: forwards spent on the rollout, before the first chunk.
        chunks: parts of the step with their own backward, without that of the data beside a rollout.
        queries: forwards of a chunk beyond its passes, which targets and penalties make at states of their own.
        on_data: forwards of the chunk of data in a run that also generates samples; 0 in other runs.
    """

    rollout: int
    chunks: int
    queries: int
    on_data: int

    def forwards(self, passes: int) -> int:
        """Return the forwards of a whole step, each of whose chunks makes this many passes."""
        return self.rollout + self.chunks * (passes + self.queries) + self.on_data


def step_cost(planned: Plan) -> StepCost:
    """Add up what the hooks of a plan declare."""

    def queries(slot: str) -> int:
        return sum(each.queries for each in planned.order if slot in each.slots)

    rollout = [each for each in planned.order if "source" in each.slots]
    on_data = queries("data") if rollout else 0
    every = sum(each.queries for each in planned.order)
    return StepCost(
        rollout=queries("source"),
        chunks=max((each.chunks for each in planned.order), default=1),
        queries=every - queries("source") - on_data,
        on_data=on_data,
    )


def slot_table(planned: Plan) -> list[tuple[str, str, tuple[str, ...]]]:
    """Rows (slot, rule, hooks in order) for every slot; a slot without hooks runs the engine's default."""
    return [
        (slot, rule, tuple(d.type for d in planned.order if any(s.split(":")[0] == slot for s in d.slots)))
        for slot, rule in SLOTS.items()
    ]
