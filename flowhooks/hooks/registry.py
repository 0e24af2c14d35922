"""The hooks flowhooks ships: type -> spec, found in the folders of this room. Free of torch; the class of a hook is
imported when a run is built.

Hooks whose needs leave the order open run in the order of their first slot; within a slot implied hooks run first,
the others by name.
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from flowhooks.documents.imports import foreign_options, imported, subclass_of
from flowhooks.documents.suggest import hint
from flowhooks.errors import ConfigError, Problem
from flowhooks.hooks.spec import HookSpec
from flowhooks.kernel.plan import SLOTS, Declaration

Options = Mapping[str, Any]


def _found() -> dict[str, type[HookSpec]]:
    """Type -> spec, of every folder beside this file."""
    found: dict[str, type[HookSpec]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.ispkg:
            inside = vars(import_module(f"{__package__}.{module.name}")).values()
            found |= {each.type: each for each in inside if isinstance(each, type) and issubclass(each, HookSpec)}
    del found[HookSpec.type]
    return dict(sorted(found.items(), key=lambda item: _place(item[1])))


def _place(spec: type[HookSpec]) -> tuple[int, bool, str]:
    first = min((list(SLOTS).index(slot.split(":")[0]) for slot in spec.slots), default=-1)
    return first, not spec.implied_by, spec.type


HOOKS: Mapping[str, type[HookSpec]] = _found()
#: Types of hooks that generate the samples that a run trains on.
SOURCES = frozenset(type for type, spec in HOOKS.items() if "source" in spec.slots)
#: Need -> the hook that is added, with its defaults, when a run does not name one that gives it.
PROVIDERS: Mapping[str, str] = {need: type for type, spec in HOOKS.items() for need in spec.implied_by}


def class_path(type: str) -> str:
    """``package.module:Class`` of a shipped hook: the class named like its spec, in the module ``hook`` beside it."""
    spec = HOOKS[type]
    return f"{spec.__module__}.hook:{spec.__name__.removesuffix('Spec')}"


def declare(type: str, options: Options, where: str, cls: Any = None, *, method: str = "") -> Declaration:
    """The declaration of a hook under its (validated, complete) options.

    Args:
        method: the method that the hook belongs to; empty for a hook that the run names itself.
        cls: the class of a hook that is not in the registry; imported from ``type`` when left out.

    Raises:
        ConfigError: the type is neither shipped nor the import path ``package.module:Class`` of a hook, or that hook's
            schema does not accept the options.
    """
    place = list(HOOKS).index(type) if type in HOOKS else len(HOOKS)
    if type in HOOKS:
        cls = HOOKS[type]
    elif cls is None:
        cls = hook_class(type, where)
        options = foreign_options(dict(options), cls, None, where)
    try:
        fields = cls.declaration(options)
    except TypeError as error:
        raise ConfigError(Problem(f"the hook {type!r} cannot be declared: {error}", path=where)) from error
    if unknown := [slot for slot in fields.get("slots", ()) if slot.split(":")[0] not in SLOTS]:
        message = f"the hook {type!r} names the slot {unknown[0]!r}, which there is none of{hint(unknown[0], SLOTS)}"
        raise ConfigError(Problem(message, path=where))
    frozen = {key: frozenset(fields.get(key, ())) for key in ("slots", "needs", "wants", "gives")}
    rank = (place, json.dumps(dict(options), sort_keys=True, default=str))
    return Declaration(
        type=type,
        where=where,
        method=method,
        rank=rank,
        passes=tuple(fields.get("passes", ())),
        queries=int(fields.get("queries", 0)),
        chunks=int(fields.get("chunks", 1)),
        excludes=dict(fields.get("excludes", {})),
        options=options,
        **frozen,
    )


def imply(defaults: Callable[[str], Options]) -> Callable[[str, str], Declaration | None]:
    """Need, JSON path of who needs it -> the hook that gives it by default, with options from ``defaults(type)``."""

    def default_hook(need: str, who: str) -> Declaration | None:
        type = PROVIDERS.get(need)
        if type is None:
            return None
        return declare(type, defaults(type), f"(implied by {who})")

    return default_hook


def undeclared(type: str, where: str) -> Declaration:
    """Return a declaration for a user's own hook where nothing may be imported: a hook in no slot."""
    return Declaration(type=type, where=where, rank=(len(HOOKS), ""))


def hook_class(type: str, where: str) -> Any:
    """Import the class of a hook, shipped or third-party.

    Raises:
        ConfigError: no such hook; it cannot be imported, or is no subclass of :class:`flowhooks.Hook`.
    """
    # Needs torch, as every hook does.
    from flowhooks.kernel.hook import Hook

    path = class_path(type) if type in HOOKS else type
    if ":" not in path:
        known = ", ".join(repr(t) for t in HOOKS)
        raise ConfigError(
            Problem(f"{type!r} is not a hook; known: {known}; or an import path 'package.module:Class'", path=where)
        )
    try:
        return imported(path, subclass_of(Hook), "subclass of flowhooks.Hook")
    except ImportError as error:
        raise ConfigError(Problem(f"cannot import the hook {type!r}: {error}", path=where)) from error
