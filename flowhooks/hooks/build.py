"""From what a run names to hook objects in their slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowhooks.documents.imports import foreign_options
from flowhooks.documents.spec import Spec
from flowhooks.errors import ConfigError, Problem, in_file
from flowhooks.hooks.blocks import resolve_hook
from flowhooks.hooks.planning import plan_hooks
from flowhooks.hooks.registry import HOOKS, declare, hook_class
from flowhooks.kernel.assembly import Assembly
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import Declaration


def build_assembly(given: Sequence[Any], provides: set[str], where: str) -> Assembly:
    """Plan the hooks of a run, build those that were implied too, and put all in order.

    Args:
        given: HookConfig, Hook or ``{"type": ...}`` entries.
        provides: what the surroundings give.
        where: file named in errors.
    """
    with in_file(where):
        made = [_made(entry, f"$.hooks[{i}]") for i, entry in enumerate(resolved_hooks(given))]
    planned = plan_hooks([m.declaration for m in made], provides, where=where)
    written = {id(m.declaration): m for m in made}
    ordered = [written.get(id(d)) or _made(resolve_hook({"type": d.type}, d.where), d.where) for d in planned.order]
    return Assembly(planned, [m.hook for m in ordered], [m.block for m in ordered])


@dataclass(frozen=True)
class BuiltHook:
    """A hook, what it declares, and the JSON block it came from, if any."""

    hook: Hook
    declaration: Declaration
    block: dict[str, Any] | None


def resolved_hooks(given: Sequence[Any], *, allow_imports: bool = False) -> list[Any]:
    """The same hooks, blocks among them validated and completed; nothing is imported.

    Args:
        given: HookConfig, Hook or ``{"type": ...}`` entries.
        allow_imports: a block may name code by an import path. HookConfig entries were allowed it, or refused, when
            they were resolved.

    Raises:
        ConfigError: a block is not valid, or names code without leave.
    """
    return [
        resolve_hook(dict(entry), f"$.hooks[{i}]", allow_imports=allow_imports) if isinstance(entry, Mapping) else entry
        for i, entry in enumerate(given)
    ]


def _options(hook: Hook) -> Mapping[str, Any]:
    """Of a hook that was built in Python: those of its spec, or all of its attributes where it has none."""
    return hook.options() if isinstance(hook, Spec) else vars(hook)


def _made(entry: Any, where: str) -> BuiltHook:
    if isinstance(entry, Hook):
        name = entry.type or f"{type(entry).__module__}:{type(entry).__qualname__}"
        return BuiltHook(entry, declare(name, _options(entry), where, type(entry)), None)
    cls, options = hook_class(entry.type, entry.where), entry.options
    foreign = entry.type not in HOOKS
    if foreign:
        options = foreign_options(dict(options), cls, None, entry.where)
    try:
        hook = cls(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(Problem(str(error), path=entry.where)) from error
    declaration = declare(entry.type, options, entry.where, cls if foreign else None, method=entry.method)
    return BuiltHook(hook, declaration, {"type": entry.type, **options})
