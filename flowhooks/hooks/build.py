"""From what a run names to hook objects in their slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowhooks import config
from flowhooks.errors import ConfigError, Problem
from flowhooks.hooks.registry import declare, hook_class, imply
from flowhooks.kernel.assembly import Assembly
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import Declaration, plan


def build_assembly(given: Sequence[Any], provides: set[str], where: str) -> Assembly:
    """Plan the hooks of a run, build those that were implied too, and put all in order.

    Args:
        given: HookConfig, Hook or ``{"type": ...}`` entries.
        provides: what the surroundings give.
        where: file named in errors.
    """
    made = [_made(entry, f"$.hooks[{i}]") for i, entry in enumerate(given)]
    planned = plan([m.declaration for m in made], provides, imply=imply(config.hook_defaults), where=where)
    ordered = [
        made[source] if source is not None else _made({"type": d.type}, d.where)
        for d, source in zip(planned.order, planned.sources, strict=True)
    ]
    return Assembly(planned, [m.hook for m in ordered], [m.block for m in ordered])


@dataclass(frozen=True)
class Made:
    """A hook, what it declares, and the JSON block it came from, if any."""

    hook: Hook
    declaration: Declaration
    block: dict[str, Any] | None


def _made(entry: Any, where: str) -> Made:
    if isinstance(entry, Hook):
        name = entry.type or f"{type(entry).__module__}:{type(entry).__qualname__}"
        return Made(entry, declare(name, vars(entry), where, type(entry)), None)
    if isinstance(entry, Mapping):
        entry = config.resolve_hook(dict(entry), where)
    try:
        hook = hook_class(entry.type, entry.where)(**entry.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(Problem(str(error), path=entry.where)) from error
    return Made(
        hook,
        declare(entry.type, entry.options, entry.where, method=entry.method),
        {"type": entry.type, **entry.options},
    )
