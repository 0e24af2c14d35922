"""Options that are written once: a class whose annotated attributes carry type, range, default and one sentence.

The JSON Schema, the defaults, the range checks of the constructor and the tables in the docs all come from it. It is
free of torch, so that ``check`` can read it at once; the class that does the work inherits the attributes.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, dataclass_transform, get_args, get_origin, get_type_hints

from jsonschema import Draft202012Validator

from flowhooks.documents.document import as_json, json_path
from flowhooks.documents.validation import checkable, explain

DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Keys that a reader of any object skips.
REMARKS = {"^(\\$comment$|_comment)": {"description": "A remark for people; it is ignored."}}
#: What closes the schema of an object.
CLOSED: Mapping[str, Any] = {"patternProperties": REMARKS, "additionalProperties": False}
_KINDS: Mapping[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    NoneType: "null",
    Mapping: "object",
    dict: "object",
    Sequence: "array",
    list: "array",
}


def option(
    text: str, *, default: Any = dataclasses.MISSING, schema: Mapping[str, Any] | None = None, **keywords: Any
) -> Any:
    """Declare one option of a :class:`Spec`.

    Args:
        text: what it does, as editors and docs show it.
        default: its value where the user gives none; an option without a default must be given.
        schema, keywords: keywords of JSON Schema, such as ``minimum=0``. Type, ``null`` and the values of a ``Literal``
            come from the annotation.
    """
    metadata = {"text": text, "keywords": {**(schema or {}), **keywords}}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def closed_object(properties: Mapping[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    """Return the keywords of an object inside an option: these properties and no others."""
    return {**({"required": list(required)} if required else {}), "properties": dict(properties), **CLOSED}


class _Schema:
    """The schema of a class, made on first access: annotations can only be read once the module is loaded."""

    def __get__(self, instance: object, owner: type[Spec]) -> dict[str, Any]:
        return owner.made_schema()


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(option,))
class Spec:
    """Base of a class that declares options as annotated attributes, ``beta: float = option("...", default=1.0)``.

    Its constructor takes them as keywords. Raises ValueError, naming each option that is out of its range or
    contradicts another.
    """

    #: The kind of thing it describes, in a word.
    kind: ClassVar[str] = ""
    #: Name of the shipped thing in JSON; empty for a class of the user's own.
    type: ClassVar[str] = ""
    title: ClassVar[str] = ""
    #: Parts of a JSON Schema that options must meet together.
    conditions: ClassVar[Sequence[Mapping[str, Any]]] = ()
    #: JSON Schema of the options.
    schema: ClassVar[Any] = _Schema()

    def __init_subclass__(cls, type: str = "", title: str = "", **more: Any):
        super().__init_subclass__(**more)
        for name in inspect.get_annotations(cls):
            if any(callable(getattr(base, name, None)) for base in cls.__bases__):
                raise TypeError(f"the option `{name}` of {cls.__name__} hides a method of that name; call it otherwise")
        if type:
            cls.type, cls.title = type, title
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)

    def __post_init__(self) -> None:
        faults = [*self._out_of_range(), *(f"`{name}` {text}" if name else text for name, text in self.faults())]
        if faults:
            raise ValueError("; ".join(faults))

    def faults(self) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for options that contradict each other; reading a run reports them. The path of
        an option may continue below it, ``times[2]``."""
        yield from ()

    @classmethod
    def made_schema(cls) -> dict[str, Any]:
        """JSON Schema of an object with these options, and with ``type`` where the class is a shipped one."""
        properties = properties_of(cls)
        required = [name for name, each in properties.items() if "default" not in each]
        selected = {"type": {"description": f"Selects this {cls.kind}.", "const": cls.type}} if cls.type else {}
        return {
            "$schema": DIALECT,
            "title": cls.title or cls.__name__,
            "description": text_of(cls),
            "type": "object",
            **({"required": [*selected, *required]} if selected or required else {}),
            "properties": {**selected, **properties},
            **({"allOf": list(cls.conditions)} if cls.conditions else {}),
            **CLOSED,
        }

    @classmethod
    def unchecked(cls, options: Mapping[str, Any]) -> Any:
        """Return an object of this class with these options, without checking them: the constructor is not run."""
        made = cls.__new__(cls)
        vars(made).update(options)
        return made

    def options(self) -> dict[str, Any]:
        """Every option with its value."""
        return {name: getattr(self, name) for name in own_options(type(self))}

    def _out_of_range(self) -> Iterator[str]:
        for name, schema in properties_of(type(self)).items():
            setattr(self, name, as_json(getattr(self, name)))
            # Blocks of another schema, such as rewards, are checked where they are built.
            own = {key: each for key, each in schema.items() if "$ref" not in str(each)}
            for error in Draft202012Validator(own).iter_errors(checkable(getattr(self, name))):
                yield from (f"{json_path(place, f'`{name}`')}: {message}" for place, message in explain(error))


def own_options(cls: Any) -> tuple[str, ...]:
    """Names of the options of a spec, in the order in which they are declared."""
    return tuple(field.name for field in dataclasses.fields(cls))


def properties_of(cls: Any) -> Mapping[str, dict[str, Any]]:
    """Option -> its JSON Schema."""
    return _properties(cls)


@cache
def _properties(cls: Any) -> Mapping[str, dict[str, Any]]:
    hints = get_type_hints(cls)
    inherited = {field.name for base in cls.__bases__ if issubclass(base, Spec) for field in dataclasses.fields(base)}
    ordered = sorted(dataclasses.fields(cls), key=lambda field: field.name in inherited)
    return {field.name: _property(field, hints[field.name]) for field in ordered}


def text_of(cls: Any) -> str:
    """Return what a spec is for: its docstring up to the first empty line, on one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def _property(field: dataclasses.Field, hint: Any) -> dict[str, Any]:
    kinds, values = _kinds(hint)
    found: dict[str, Any] = {"description": field.metadata["text"], "type": kinds if len(kinds) > 1 else kinds[0]}
    if values:
        found["enum"] = values
    found.update(field.metadata["keywords"])
    if field.default_factory is not dataclasses.MISSING:
        found["default"] = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        found["default"] = field.default
    return found


def _kinds(hint: Any) -> tuple[list[str], list[Any]]:
    """Return the JSON types of an annotation, and the values that a ``Literal`` in it allows."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds(part) for part in get_args(hint)]
        kinds = [kind for found, _ in parts for kind in found]
        values = [value for _, found in parts for value in found]
        return kinds, [*values, None] if values and "null" in kinds else values
    if get_origin(hint) is Literal:
        return ["string"], list(get_args(hint))
    kind = _KINDS.get(get_origin(hint) or hint)
    if kind is None:
        known = ", ".join(each.__name__ for each in _KINDS)
        raise TypeError(f"an option cannot be annotated {hint!r}, only with {known}, or a Literal of strings")
    return [kind], []
