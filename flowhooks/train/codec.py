"""Store any training state in one safetensors file: tensors as tensors, everything else as JSON in the header. No
pickle. Tensors that are sharded over processes go into a file of each, see :mod:`flowhooks.train.rows`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from flowhooks.errors import CheckpointError
from flowhooks.files import share
from flowhooks.reading import MAX_TEXT, parse, refuse_special
from flowhooks.sharding import is_first_copy, local, rows_of
from flowhooks.train.rows import parts_beside, rows_at, rows_file, rows_header
from flowhooks.transfer import on_host

_HEADER = "flowhooks.state"
_TENSOR, _TUPLE, _ITEMS, _ROWS = "$tensor", "$tuple", "$items", "$rows"


def encode(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Turn a tree of dicts, lists, tuples, tensors, numbers, strings and None into the same tree as JSON, and copies of
    its tensors on the host.

    Raises:
        TypeError: a leaf has another type; the message names its place.
    """
    tree, tensors, _ = _walked(state)
    # Copied: safetensors refuses tensors that share memory.
    return tree, on_host(tensors)


def _walked(state: Any) -> tuple[Any, dict[str, Tensor], dict[str, DTensor]]:
    """Return a tree as JSON, its tensors, and those of them that are sharded."""
    tensors: dict[str, Tensor] = {}
    sharded: dict[str, DTensor] = {}

    def walk(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            name = place.removeprefix("state.")
            while name in tensors or name in sharded:
                name += "'"
            if isinstance(value, DTensor):
                sharded[name] = value
                return {_ROWS: name, "shape": list(value.shape)}
            tensors[name] = value
            return {_TENSOR: name}
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("$") for key in value):
                return {key: walk(item, f"{place}.{key}") for key, item in value.items()}
            return {_ITEMS: [[walk(k, place), walk(item, f"{place}[{k!r}]")] for k, item in value.items()]}
        if isinstance(value, (list, tuple)):
            items = [walk(item, f"{place}[{i}]") for i, item in enumerate(value)]
            return {_TUPLE: items} if isinstance(value, tuple) else items
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise TypeError(
            f"{place} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, lists, dicts"
        )

    return walk(state, "state"), tensors, sharded


def decode(tree: Any, tensors: Mapping[str, Tensor], rows: Callable[[str, list[int]], Any] | None = None) -> Any:
    """Rebuild the tree that :func:`encode` was given.

    Args:
        rows: returns what stands for a sharded tensor, by its name and shape.
    """
    if isinstance(tree, list):
        return [decode(item, tensors, rows) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _ROWS in tree and rows is not None:
        return rows(tree[_ROWS], tree["shape"])
    if _TUPLE in tree:
        return tuple(decode(item, tensors, rows) for item in tree[_TUPLE])
    if _ITEMS in tree:
        return {decode(key, tensors, rows): decode(item, tensors, rows) for key, item in tree[_ITEMS]}
    return {key: decode(item, tensors, rows) for key, item in tree.items()}


def packed_state(state: Any, rank: int = 0, *, main: bool = True) -> Callable[[Path], None]:
    """Copy a state, and return what writes the copy to a file, now or later.

    Args:
        rank: of this process, which writes its rows of sharded tensors into a file of its own beside it.
        main: whether this process writes the rest of the state, too.

    Raises:
        TypeError: a leaf has another type. What is returned raises OSError or SafetensorError when the disk refuses.
    """
    tree, tensors, sharded = _walked(state)
    header = {_HEADER: json.dumps(tree)}
    mine = {name: value for name, value in sharded.items() if is_first_copy(value) and rows_of(value)[1]}
    copied = on_host(tensors) if main else {}
    rows = on_host({name: local(value) for name, value in mine.items()})
    firsts = {name: rows_of(value)[0] for name, value in mine.items()}

    def write(file: Path) -> None:
        if main:
            save_file(copied, file, metadata=header)
            share(file)
        if rows:
            beside = rows_file(file, rank)
            save_file(rows, beside, metadata=rows_header(firsts))
            share(beside)

    return write


def write_state(file: Path, state: Any) -> None:
    """Write a state to a file. Raises as :func:`packed_state` and what it returns."""
    packed_state(state)(file)


def read_state(file: Path) -> Any:
    """Read what :func:`write_state` wrote, onto the CPU; sharded tensors are :class:`flowhooks.train.rows.Rows`, whose
    values are not read yet. Raises CheckpointError when it cannot be read."""
    try:
        refuse_special(file)
        with safe_open(file, framework="pt", device="cpu") as handle:
            # Generators have integers of 128 bits, and metrics may be infinite.
            text = (handle.metadata() or {})[_HEADER]
            tree = parse(text, most=MAX_TEXT, largest=float("inf"), finite=False)
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        parts = parts_beside(file)
        return decode(tree, tensors, lambda name, shape: rows_at(name, shape, parts))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); resume from another checkpoint") from error
