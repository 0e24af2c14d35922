"""The spec of a method: hooks with their options under one name in JSON. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flowhooks.documents.spec import CLOSED, DIALECT, Spec, properties_of, text_of
from flowhooks.hooks.spec import HookSpec

Block = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """The rest of the run that a method is part of.

    Args:
        masked: whether the data has masks; None when the data is not known, as in a loop of the user's.
        others: the hook blocks of the other methods in the run, and of the hooks that the run names itself.
    """

    masked: bool | None
    others: tuple[Block, ...] = ()

    def wants_mask(self, asked: bool) -> bool:
        """Whether masks are used: where the data has them, or, with unknown data, where the method's options need
        them."""
        return asked if self.masked is None else self.masked


@dataclass(frozen=True, kw_only=True)
class Part:
    """One hook of a method.

    Args:
        hook: its spec.
        without: options that the method does not offer.
        names: the method's name for an option -> the hook's, where they differ.
        changes: the method's name for an option -> keywords of its JSON Schema that differ from the hook's.
        fixed: values of options that the method sets, in place of offering them.
        when: returns whether a method's block includes this hook; None includes it always.
    """

    hook: type[HookSpec]
    without: Sequence[str] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fixed: Block = field(default_factory=dict)
    when: Callable[[Block, Context], bool] | None = None

    def offered(self) -> dict[str, str]:
        """The method's name -> the hook's name, of every option that the method passes on."""
        renamed = {own: name for name, own in self.names.items()}
        hidden = {*self.without, *self.fixed}
        return {renamed.get(own, own): own for own in properties_of(self.hook) if own not in hidden}

    def properties(self) -> dict[str, dict[str, Any]]:
        """JSON Schema of each of :meth:`offered`, under the method's names."""
        found = {}
        for name, own in self.offered().items():
            changed = {**properties_of(self.hook)[own], **self.changes.get(name, {})}
            # A default of ``...`` takes the hook's away: the option must be given.
            found[name] = {key: value for key, value in changed.items() if value is not ...}
        return found

    def block(self, block: Block) -> dict[str, Any]:
        """Return the hook's block for a method's block."""
        passed = {own: block[name] for name, own in self.offered().items()}
        return {"type": self.hook.type, **passed, **self.fixed}


class Method(Spec):
    """Base of a method, ``class FlowDPOMethod(Method, type="flow_dpo", title="Flow-DPO method")``.

    It names its hooks in ``parts``; options of its own are annotated attributes as in any spec.
    """

    kind: ClassVar[str] = "method"
    parts: ClassVar[Sequence[Part]] = ()
    #: Whether it is expanded after all other methods, since its hooks depend on theirs.
    last: ClassVar[bool] = False

    @classmethod
    def made_schema(cls) -> dict[str, Any]:
        """JSON Schema of the method's block: the options of its hooks, and its own."""
        properties = {name: each for part in cls.parts for name, each in part.properties().items()}
        properties |= properties_of(cls)
        required = [name for name, each in properties.items() if "default" not in each]
        return {
            "$schema": DIALECT,
            "title": cls.title,
            "description": text_of(cls),
            "type": ["object", "null"],
            **({"required": required} if required else {}),
            "properties": properties,
            **({"allOf": list(cls.conditions)} if cls.conditions else {}),
            **CLOSED,
        }

    @classmethod
    def expand(cls, block: Block, context: Context) -> list[dict[str, Any]]:
        """Return the hook blocks to which a complete block of this method expands."""
        return [part.block(block) for part in cls.parts if part.when is None or part.when(block, context)]

    @classmethod
    def contradictions(cls, block: Block, context: Context) -> Iterator[tuple[str, str]]:
        """(option, what is wrong) of options of the method's own that contradict each other."""
        yield from ()
