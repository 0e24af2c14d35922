"""From what a run names to hook objects in their slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowhooks.documents.spec import Spec
from flowhooks.errors import ConfigError, Problem, in_file
from flowhooks.hooks.blocks import resolve_hook
from flowhooks.hooks.planning import plan_hooks
from flowhooks.hooks.registry import declare, hook_class
from flowhooks.kernel.assembly import Assembly
from flowhooks.kernel.hook import Hook
from flowhooks.kernel.plan import Declaration, Plan

#: A hook, and the JSON block that it was made from, if any.
Made = tuple[Hook, dict[str, Any] | None]


def build_assembly(given: Sequence[Any], provides: set[str], where: str) -> Assembly:
    """Plan hooks, build them and those that they imply, and put all in order.

    Args:
        given: HookConfig, Hook or ``{"type": ...}`` entries.
        provides: what data and training give to hooks.
        where: file named in errors.

    Raises:
        ConfigError: a block is not valid, a class refuses its options, or the hooks cannot be planned.
    """
    made: dict[int, Made] = {}
    declarations = []
    with in_file(where):
        for i, entry in enumerate(resolved_hooks(given)):
            if isinstance(entry, Hook):
                name = entry.type or f"{type(entry).__module__}:{type(entry).__qualname__}"
                declared = declare(name, _options(entry), f"$.hooks[{i}]", type(entry))
                made[id(declared)] = entry, None
            else:
                declared = declare(entry.type, entry.options, entry.where, method=entry.method)
                made[id(declared)] = _made(declared)
            declarations.append(declared)
    return assemble(plan_hooks(declarations, provides, where=where), where, made)


def assemble(planned: Plan, where: str, made: Mapping[int, Made] | None = None) -> Assembly:
    """Build the hooks of a plan, each once.

    Args:
        where: file named in errors.
        made: ``id`` of a declaration -> its hook, for hooks that exist already.

    Raises:
        ConfigError: a class refuses its options.
    """
    there = made or {}
    with in_file(where):
        ordered = [there.get(id(declared)) or _made(declared) for declared in planned.order]
    return Assembly(planned, [hook for hook, _ in ordered], [block for _, block in ordered])


def resolved_hooks(given: Sequence[Any], *, allow_imports: bool = False) -> list[Any]:
    """Return these hooks with their blocks validated and completed; nothing is imported.

    Args:
        given: HookConfig, Hook or ``{"type": ...}`` entries.
        allow_imports: whether a block may name code by an import path. HookConfig entries were checked for that when
            they were resolved.

    Raises:
        ConfigError: a block is not valid, or names code without permission.
    """
    for i, entry in enumerate(given):
        if isinstance(entry, (str, type)):
            found = f"the class {entry.__name__}" if isinstance(entry, type) else f"the string {entry!r}"
            wanted = f"{entry.__name__}(...)" if isinstance(entry, type) else f'{{"type": "{entry}"}}'
            message = f"expected a hook or a block, found {found}; write {wanted}"
            raise ConfigError(Problem(message, path=f"$.hooks[{i}]"))
    return [
        resolve_hook(dict(entry), f"$.hooks[{i}]", allow_imports=allow_imports) if isinstance(entry, Mapping) else entry
        for i, entry in enumerate(given)
    ]


def _options(hook: Hook) -> Mapping[str, Any]:
    """Options of a hook that was built in Python: those of its spec, or all of its attributes where it has no spec."""
    return hook.options() if isinstance(hook, Spec) else vars(hook)


def _made(declared: Declaration) -> Made:
    try:
        hook = hook_class(declared.type, declared.where)(**declared.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(Problem(str(error), path=declared.where)) from error
    return hook, {"type": declared.type, **declared.options}
