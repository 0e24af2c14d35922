"""Keep tensors that are sharded over processes in files of these processes: each writes its rows, and any number of
processes read them again.

A state's own file, which the main process writes, holds its tree, and in the place of a sharded tensor the tensor's
name and shape. The rows are in ``<stem>_rows_<rank>.safetensors`` beside it. This is not the format of
``torch.distributed.checkpoint``: that of torch 2.13 pickles its index (``.metadata``), which this package forbids, and
its ``HuggingFaceStorageWriter``, which does not, holds tensors only, and neither the tree of an optimiser's state nor
numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from flowhooks.reading import MAX_TEXT, parse, refuse_special
from flowhooks.sharding import rows_of, with_rows

#: Key of a header: name of a tensor -> its first row in this file.
HEADER = "flowhooks.rows"


def rows_file(file: Path, rank: int) -> Path:
    """Return the file of a process's rows of a state."""
    return file.with_name(f"{file.stem}_rows_{rank}.safetensors")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Holds where the rows of a tensor are on the disk.

    Args:
        name: of the tensor in its files.
        shape: of the whole.
        parts: first row, number of rows, and the file of each part, in order.
    """

    name: str
    shape: torch.Size
    parts: tuple[tuple[int, int, Path], ...]

    def some(self, first: int, count: int) -> Tensor:
        """Read some rows, onto the host. Raises SafetensorError or OSError where a file cannot be read."""
        found: list[Tensor] = []
        for start, held, file in self.parts:
            low, high = max(first, start), min(first + count, start + held)
            # An empty part tells the type where no rows are wanted.
            if low < high or not found:
                low, high = max(low, start), max(high, max(low, start))
                with safe_open(file, framework="pt", device="cpu") as handle:
                    found.append(handle.get_slice(self.name)[low - start : high - start])
        return torch.cat([each for each in found if len(each)] or found[:1])

    def whole(self) -> Tensor:
        """Read all rows, onto the host."""
        return self.some(0, self.shape[0])


def parts_beside(file: Path) -> dict[str, list[tuple[int, int, Path]]]:
    """Return, for each tensor in the files of rows beside a state's file, its parts in order.

    Raises:
        SafetensorError, OSError, ValueError, KeyError: a file is not one of ours.
    """
    found: dict[str, list[tuple[int, int, Path]]] = {}
    for beside in sorted(file.parent.glob(rows_file(file, 0).name.replace("_0.", "_*."))):
        refuse_special(beside)
        with safe_open(beside, framework="pt", device="cpu") as handle:
            firsts = parse((handle.metadata() or {})[HEADER], most=MAX_TEXT)
            for name in handle.keys():  # noqa: SIM118 (not a dict)
                found.setdefault(name, []).append((int(firsts[name]), handle.get_slice(name).get_shape()[0], beside))
    return {name: sorted(parts, key=lambda part: part[:2]) for name, parts in found.items()}


def rows_at(name: str, shape: list[int], parts: Mapping[str, list[tuple[int, int, Path]]]) -> Rows:
    """Return a tensor's rows. Raises ValueError where some of them are in no file."""
    held = parts.get(name, [])
    at = 0
    for first, count, _ in held:
        if first != at:
            break
        at += count
    if not held or at != shape[0]:
        raise ValueError(f"{name}: {at} of its {shape[0]} rows are there")
    return Rows(name=name, shape=torch.Size(shape), parts=tuple(held))


def rows_header(firsts: Mapping[str, int]) -> dict[str, str]:
    return {HEADER: json.dumps(firsts)}


def is_of_shape(value: Any, shape: torch.Size) -> bool:
    """Whether a saved value is a tensor of this shape."""
    return isinstance(value, (Tensor, Rows)) and value.shape == shape


def settled(saved: Any, own: Any = None) -> Any:
    """Return a saved tree with tensors: sharded like those in the same places of another tree, where these are sharded,
    and whole elsewhere. Of what was saved in rows each process reads its own.

    Args:
        own: a tree that may lack places.
    """
    if isinstance(saved, (Tensor, Rows)):
        if not isinstance(own, DTensor) or own.shape != saved.shape:
            return saved.whole() if isinstance(saved, Rows) else saved
        first, count = rows_of(own)
        rows = saved.some(first, count) if isinstance(saved, Rows) else saved[first : first + count].clone()
        return with_rows(rows.to(own.device), own)
    if isinstance(saved, Mapping):
        held = own if isinstance(own, Mapping) else {}
        return {key: settled(value, held.get(key)) for key, value in saved.items()}
    if isinstance(saved, (list, tuple)):
        beside = own if isinstance(own, (list, tuple)) and len(own) == len(saved) else [None] * len(saved)
        return type(saved)(settled(value, each) for value, each in zip(saved, beside, strict=True))
    return saved
