"""Combine and split transformer arguments: tensors, numbers, and lists and tuples of them. How they grow with the batch
is learned, not assumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowhooks.errors import ModelError
from flowhooks.reading import parse
from flowhooks.transfer import sent

#: How values of samples become that of a batch: ``None`` shares one by all; ``["axis", k]`` joins tensors along
#: axis k, ``["axis", k, n]`` where each sample has n rows there; ``["extend"]`` joins lists; with ``"alike"`` at the
#: end only values of equal content are joined; ``["each", [rule, ...]]`` treats a container's items one by one.
Rule = Any

ALIKE = "alike"
STRUCTURE = "__structure__"


def same(a: Any, b: Any) -> bool:
    """Return whether two values are equal to the last bit, nested containers included."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def learn_rule(one: Any, two: Any, name: str) -> Rule:
    """Return how a value grew from a batch of one to a batch of two.

    Raises:
        ModelError: no rule describes how it grew.
    """
    if isinstance(one, Tensor) and isinstance(two, Tensor) and one.dim() == two.dim():
        grown = [k for k in range(one.dim()) if two.shape[k] != one.shape[k]]
        batch = [k for k in range(one.dim()) if one.shape[k] == 1 and two.shape[k] == 2]
        if not grown:
            return None
        if batch:
            return ["axis", batch[0]]
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        if len(one) == 1 and len(two) == 2:
            return ["extend"]
        if len(one) == len(two):
            rules = [learn_rule(a, b, name) for a, b in zip(one, two, strict=True)]
            return ["each", rules] if any(rules) else None
    if type(one) is type(two) and not isinstance(one, (Tensor, list, tuple)):
        return None
    raise ModelError(f"the argument {name!r} grows from one prompt to two in a way that the probe cannot read")


def proposed_rule(value: Any, other: Any) -> Rule:
    """Return how a value probably grows with the batch, from one sample alone: the comparison of a batch with its
    samples shows whether it does.

    Args:
        other: the value for a sample with other images. Rows of one shape and another content are of the sample.
    """
    if isinstance(value, Tensor) and value.dim():
        if len(value) == 1:
            return ["axis", 0]
        moves = isinstance(other, Tensor) and other.shape == value.shape and not torch.equal(other, value)
        return ["axis", 0, len(value)] if moves and value.dim() > 2 else None
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return ["extend", ALIKE]
    if isinstance(value, (list, tuple)):
        others = other if isinstance(other, (list, tuple)) and len(other) == len(value) else [None] * len(value)
        # A vector of one number may be the places along an edge.
        rules = [
            proposed_rule(a, b) if isinstance(a, Tensor) and a.dim() > 1 else None
            for a, b in zip(value, others, strict=True)
        ]
        return ["each", rules] if any(rules) else None
    return None


def flat_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with the parts of each that is a mapping with tensors as arguments of their own, ``name.part``:
    one may depend on the prompt and another one on the resolution."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values()):
            flat |= {f"{name}.{part}": tensor for part, tensor in value.items()}
        else:
            flat[name] = value
    return flat


def nested_arguments(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that :func:`flat_arguments` took apart."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        whole, dot, part = name.partition(".")
        if dot:
            nested.setdefault(whole, {})[part] = value
        else:
            nested[name] = value
    return nested


def collate(rule: Rule, values: Sequence[Any]) -> Any:
    """Return the value of a batch from those of its samples, which must fit (see :func:`signature`)."""
    if rule is None or values[0] is None:
        return values[0]
    if rule[0] == "axis":
        return torch.cat(list(values), rule[1])
    if rule[0] == "extend":
        return type(values[0])(item for value in values for item in value)
    items = [collate(r, [value[i] for value in values]) for i, r in enumerate(rule[1])]
    return type(values[0])(items)


def signature(rule: Rule, value: Any) -> Any:
    """Return a signature: samples with equal ones can share a batch exactly, having the same shapes where tensors are
    joined and the same values where they are shared."""
    if rule is None or value is None:
        return map_tensors(value, lambda t: (tuple(t.shape), t.flatten().tolist()))
    if rule[0] == "axis":
        shape = tuple(n for k, n in enumerate(value.shape) if k != rule[1])
        return (*shape, *value.flatten().tolist()) if rule[-1] == ALIKE else shape
    if rule[0] == "extend":
        return map_tensors(value, lambda t: tuple(t.shape)) if rule[-1] == ALIKE else ()
    return tuple(signature(r, value[i]) for i, r in enumerate(rule[1]))


def take(rule: Rule, value: Any, i: int) -> Any:
    """Return sample ``i`` of a batch's value, as a batch of one."""
    if rule is None or value is None:
        return value
    if rule[0] == "axis":
        rows = rule[2] if len(rule) > 2 and rule[2] != ALIKE else 1
        return value.narrow(rule[1], i * rows, rows)
    if rule[0] == "extend":
        return type(value)(value[i : i + 1])
    return type(value)(take(r, value[k], i) for k, r in enumerate(rule[1]))


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Apply ``change`` to every tensor inside."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {k: map_tensors(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(v, change) for v in value)
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor inside, in order."""
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found


def moved(value: Any, device: Any, dtype: torch.dtype | None) -> Any:
    """Move tensors to ``device``; floating-point ones get ``dtype``, when given."""
    return map_tensors(value, lambda t: sent(t, device, dtype if t.is_floating_point() else None))


def flatten(value: Any) -> dict[str, Tensor]:
    """Return a nested value as flat tensors, for safetensors; the structure is kept beside them as JSON bytes."""
    tensors: dict[str, Tensor] = {}

    def walk(v: Any) -> Any:
        if isinstance(v, Tensor):
            key = f"t{len(tensors)}"
            tensors[key] = v.detach().contiguous()
            return {"tensor": key}
        if isinstance(v, Mapping):
            return {"dict": {k: walk(x) for k, x in v.items()}}
        if isinstance(v, tuple):
            return {"tuple": [walk(x) for x in v]}
        if isinstance(v, list):
            return {"list": [walk(x) for x in v]}
        return {"value": v}

    structure = json.dumps(walk(value)).encode()
    return {**tensors, STRUCTURE: torch.tensor(list(structure), dtype=torch.uint8)}


def unflatten(tensors: Mapping[str, Tensor]) -> Any:
    """Rebuild the value from the tensors of :func:`flatten`."""

    def build(node: Mapping[str, Any]) -> Any:
        ((kind, content),) = node.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {k: build(x) for k, x in content.items()}
        if kind == "tuple":
            return tuple(build(x) for x in content)
        if kind == "list":
            return [build(x) for x in content]
        return content

    return build(parse(bytes(tensors[STRUCTURE].tolist()), finite=False))
