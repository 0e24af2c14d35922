"""What a method is: hooks with their options under one name in JSON. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flowhooks.documents.spec import CLOSED, DIALECT, Spec, properties_of, text_of
from flowhooks.hooks.spec import HookSpec

Block = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """The surroundings of a method.

    Args:
        masked: whether the data has masks; None when the data is not known, as in somebody's own loop.
        others: the hook blocks of the other methods in the run, and of the hooks that were written themselves.
    """

    masked: bool | None
    others: tuple[Block, ...] = ()

    def wants_mask(self, asked: bool) -> bool:
        """Whether masks are used: where the data has them, or, with unknown data, where the method's options ask."""
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
        when: whether a method's block wants this hook; None: always.
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
        """The hook's block that a method's block stands for."""
        passed = {own: block[name] for name, own in self.offered().items()}
        return {"type": self.hook.type, **passed, **self.fixed}


class Method(Spec):
    """Base of a method, ``class FlowDPOMethod(Method, type="flow_dpo", title="Flow-DPO method")``.

    It names its hooks in ``parts``; options of its own are annotated attributes as in any spec.
    """

    kind: ClassVar[str] = "method"
    parts: ClassVar[Sequence[Part]] = ()
    #: Whether it is expanded after all other methods, since it asks what it stands beside.
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
        """The hook blocks that a complete block of this method stands for."""
        return [part.block(block) for part in cls.parts if part.when is None or part.when(block, context)]

    @classmethod
    def contradictions(cls, block: Block, context: Context) -> Iterator[tuple[str, str]]:
        """(option, what is wrong) of options of the method's own that contradict each other."""
        yield from ()
