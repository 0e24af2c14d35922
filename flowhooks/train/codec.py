"""Store any training state in one safetensors file: tensors as tensors, everything else as JSON in the header. No
pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowhooks.errors import CheckpointError
from flowhooks.files import share
from flowhooks.reading import MAX_TEXT, parse, refuse_special
from flowhooks.transfer import on_host

_HEADER = "flowhooks.state"
_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"


def encode(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """Turn a tree of dicts, lists, tuples, tensors, numbers, strings and None into the same tree as JSON, and copies of
    its tensors on the host.

    Raises:
        TypeError: a leaf has another type; the message names its place.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            name = place.removeprefix("state.")
            while name in tensors:
                name += "'"
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

    # Copied: safetensors refuses tensors that share memory.
    return walk(state, "state"), on_host(tensors)


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Rebuild the tree that :func:`encode` was given."""
    if isinstance(tree, list):
        return [decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _TUPLE in tree:
        return tuple(decode(item, tensors) for item in tree[_TUPLE])
    if _ITEMS in tree:
        return {decode(key, tensors): decode(item, tensors) for key, item in tree[_ITEMS]}
    return {key: decode(item, tensors) for key, item in tree.items()}


def packed_state(state: Any) -> Callable[[Path], None]:
    """Copy a state, and return what writes the copy to a file, now or later. Raises TypeError for a leaf of another
    type; what is returned raises OSError or SafetensorError when the disk refuses."""
    tree, tensors = encode(state)
    header = {_HEADER: json.dumps(tree)}

    def write(file: Path) -> None:
        save_file(tensors, file, metadata=header)
        share(file)

    return write


def write_state(file: Path, state: Any) -> None:
    """Write a state to a file. Raises as :func:`packed_state` and what it returns."""
    packed_state(state)(file)


def read_state(file: Path) -> Any:
    """Read what :func:`write_state` wrote, onto the CPU. Raises CheckpointError when it cannot be read."""
    try:
        refuse_special(file)
        with safe_open(file, framework="pt", device="cpu") as handle:
            # Generators have integers of 128 bits, and metrics may be infinite.
            text = (handle.metadata() or {})[_HEADER]
            tree = parse(text, most=MAX_TEXT, largest=float("inf"), finite=False)
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
        return decode(tree, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error}); resume from another checkpoint") from error
