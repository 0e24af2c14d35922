"""Read facts about Diffusers' classes from its source. This takes milliseconds; importing it would import torch.

Every function returns None where the source does not say, as for a class that inherits the fact from another file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

#: Python's plain types -> the types of a JSON value that they accept, and their name in messages. True is no number.
PLAIN: Mapping[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a string"),
}

#: Types of which a value may be several: lists, and Diffusers' own names for what may be one.
_SEVERAL = re.compile(r"list|tuple|sequence|iterable|any\b|input", re.IGNORECASE)


@cache
def exported() -> frozenset[str] | None:
    """Return the classes that Diffusers exports."""
    root = _root()
    names = frozenset(re.findall(r'"([A-Z]\w+)"', _text(root / "__init__.py"))) if root else frozenset()
    return names if "DiffusionPipeline" in names else None


@cache
def reads_single_files() -> frozenset[str] | None:
    """Return the networks that Diffusers reads from a single file, such as a GGUF file."""
    root = _root()
    text = _text(root / "loaders" / "single_file_model.py") if root else ""
    return frozenset(re.findall(r'^    "([A-Z]\w+)": \{', text, re.MULTILINE)) or None


@cache
def call_arguments(pipeline: str) -> frozenset[str] | None:
    """Return the keyword arguments of a pipeline's call."""
    found = _class(pipeline, "pipelines/*/pipeline_*.py")
    call = _member(found, "__call__")
    if not isinstance(call, ast.FunctionDef) or call.args.kwarg is not None:
        return None
    return frozenset(each.arg for each in (*call.args.args, *call.args.kwonlyargs)) - {"self"}


@cache
def plain_arguments(pipeline: str) -> Mapping[str, str]:
    """Return the arguments of a pipeline's call that take one plain value: name -> ``int``, ``float``, ``bool`` or
    ``str``."""
    call = _member(_class(pipeline, "pipelines/*/pipeline_*.py"), "__call__")
    if not isinstance(call, ast.FunctionDef):
        return {}
    written = ((each.arg, each.annotation) for each in (*call.args.args, *call.args.kwonlyargs))
    return {name: told.id for name, told in written if isinstance(told, ast.Name) and told.id in PLAIN}


@cache
def single_arguments(pipeline: str) -> frozenset[str]:
    """Return the arguments of a pipeline's call that, by the types that it states, take one value and no list of
    several. The many that state a list, for the images of several samples, tell nothing of one sample's."""
    call = _member(_class(pipeline, "pipelines/*/pipeline_*.py"), "__call__")
    if not isinstance(call, ast.FunctionDef):
        return frozenset()
    written = {each.arg: each.annotation for each in (*call.args.args, *call.args.kwonlyargs)}
    stated = {name: ast.unparse(type_) for name, type_ in written.items() if type_ is not None}
    return frozenset(name for name, type_ in stated.items() if not _SEVERAL.search(type_))


@cache
def parts_of_its_own(pipeline: str) -> frozenset[str]:
    """Return the parts that a pipeline's class makes itself where it is given none; Diffusers writes no folder of
    them."""
    made = _member(_class(pipeline, "pipelines/*/pipeline_*.py"), "__init__")
    if not isinstance(made, ast.FunctionDef):
        return frozenset()
    several = made.args.args[len(made.args.args) - len(made.args.defaults) :]
    return frozenset(each.arg for each in several)


@cache
def checkpoints_gradients(network: str) -> bool | None:
    """Return whether a network can recompute activations in the backward pass."""
    found = _class(network, "models/transformers/*.py") or _class(network, "models/unets/*.py")
    if found is None or not {"ModelMixin"} & {getattr(base, "id", "") for base in found.bases}:
        return None
    told = _member(found, "_supports_gradient_checkpointing")
    return bool(ast.literal_eval(told.value)) if isinstance(told, ast.Assign) else False


def foreign_parts(index: Mapping[str, object]) -> Iterator[str]:
    """Yield why the index of a pipeline, or some of its entries, must not be loaded: a sentence for each part, and for
    the pipeline itself, whose code comes with neither Diffusers nor Transformers."""
    for part, found in index.items():
        maker: object = None
        if part == "_class_name":
            maker = None if isinstance(found, str) else found
        elif isinstance(found, (list, tuple)) and found and is_foreign(found[0]):
            maker = found[0]
        if maker is not None:
            yield (
                f"has {part!r} made by {maker!r}, code that comes with neither Diffusers nor Transformers, and no such "
                "code is run; use a pipeline of theirs"
            )


def is_foreign(library: object) -> bool:
    """Return whether loading a part of this library would run code from outside Diffusers and Transformers: Diffusers
    looks for components in the packages of its own pipelines too. None is the library of a part that a pipeline was
    saved without."""
    if library in (None, "diffusers", "transformers"):
        return False
    root = _root()
    return root is None or library not in {each.parent.name for each in (root / "pipelines").glob("*/__init__.py")}


def _class(name: str, pattern: str) -> ast.ClassDef | None:
    head = re.compile(rf"^class {re.escape(name)}\b", re.MULTILINE)
    root = _root()
    for file in root.glob(pattern) if root else ():
        text = _text(file)
        if head.search(text):
            try:
                body: Iterable[ast.stmt] = _parsed(text).body
            except SyntaxError:
                return None
            return next((each for each in body if isinstance(each, ast.ClassDef) and each.name == name), None)
    return None


def _parsed(text: str) -> ast.Module:
    """Return the syntax tree of a text. Raises SyntaxError."""
    try:
        return ast.parse(text)
    except SystemError:
        # Pythons before 3.11.5 miscount if garbage is collected during parsing (python/cpython#106905).
        return ast.parse(text)


def _member(found: ast.ClassDef | None, name: str) -> ast.stmt | None:
    """Return a method or an attribute by its name."""

    for each in found.body if found else ():
        if isinstance(each, ast.FunctionDef) and each.name == name:
            return each
        if isinstance(each, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in each.targets):
            return each
    return None


def _root() -> Path | None:
    found = find_spec("diffusers")
    return None if found is None or found.origin is None else Path(found.origin).parent


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
