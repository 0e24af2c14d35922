"""Hold the network's arguments that depend on a sample's prompt and references, recorded from the pipeline's own
handling of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowhooks.probe.values import Rule, collate, flatten, moved, signature, take, unflatten

#: Under this name, which no argument has, a condition holds what the VAE gets beside the sample.
DECODED = "vae.decode"
#: This stands before the name of an argument that a condition holds for its samples without their prompts too.
UNPROMPTED = "without its prompt: "
#: Under this one, whether the sample has images, where its layout differs then and its shape does not.
GIVEN = "is given images"


@dataclass(frozen=True, eq=False)
class Condition:
    """Holds the network's arguments that depend on prompt and references, for ``size`` samples.

    Prompts are encoded one by one, as the pipeline does it for a single image. Samples whose arguments have one shape
    share a forward; others get a separate one, so each sample gets the same arguments in a batch as alone.

    Of references, the network's argument for the sample holds what is not the sample, and 0 where that is.

    Args:
        samples: for each sample, its arguments by name, as for a batch of one.
        rules: argument -> how it grows with the batch.
        signatures: for each sample, the value that must be equal for two samples to share a forward. Computed once,
            where the arguments are made.
    """

    samples: tuple[Mapping[str, Any], ...]
    rules: Mapping[str, Rule]
    signatures: tuple[Any, ...]

    @property
    def size(self) -> int:
        return len(self.samples)

    def join(self, others: Sequence[Condition]) -> Condition:
        """Return the samples of this condition, followed by those of the others."""
        every = [self, *others]
        return Condition(_chained(c.samples for c in every), self.rules, _chained(c.signatures for c in every))

    def take(self, rows: Sequence[int]) -> Condition:
        """Return these samples, in this order."""
        samples, signatures = ([part[i] for i in rows] for part in (self.samples, self.signatures))
        return Condition(tuple(samples), self.rules, tuple(signatures))

    def __getitem__(self, rows: slice) -> Condition:
        return Condition(self.samples[rows], self.rules, self.signatures[rows])

    def merged(self, other: Condition) -> Condition:
        """Return the same samples with the arguments of another condition too, such as those of their references.

        Raises:
            ValueError: the other holds another number of samples.
        """
        if other.size != self.size:
            raise ValueError(f"{self.size} samples cannot be merged with {other.size}")
        return Condition(
            tuple({**own, **more} for own, more in zip(self.samples, other.samples, strict=True)),
            {**self.rules, **other.rules},
            tuple((*own, *more) for own, more in zip(self.signatures, other.signatures, strict=True)),
        )

    def with_unprompted(self, other: Condition) -> Condition:
        """Return the same samples, which also hold what arguments are without their prompts, from another condition."""
        named = {f"{UNPROMPTED}{name}": rule for name, rule in other.rules.items()}
        samples = tuple({f"{UNPROMPTED}{name}": value for name, value in each.items()} for each in other.samples)
        keys = tuple(tuple((f"{UNPROMPTED}{name}", own) for name, own in key) for key in other.signatures)
        return self.merged(Condition(samples, named, keys))

    def unprompted(self) -> Condition | None:
        """Return the same samples without their prompts, each with its own references; None where that is not held."""
        if not any(name.startswith(UNPROMPTED) for name in self.rules):
            return None
        names = [name for name in self.rules if not name.startswith(UNPROMPTED)]
        samples = tuple({name: each.get(f"{UNPROMPTED}{name}", each[name]) for name in names} for each in self.samples)
        keys = [dict(key) for key in self.signatures]
        signatures = tuple(tuple((n, key.get(f"{UNPROMPTED}{n}", key[n])) for n in names if n in key) for key in keys)
        return Condition(samples, {name: self.rules[name] for name in names}, signatures)

    def only(self, names: Iterable[str]) -> Condition:
        """Return the same samples with these arguments only."""
        kept = {name: self.rules[name] for name in names if name in self.rules}
        signatures = (tuple(part for part in key if part[0] in kept) for key in self.signatures)
        return Condition(tuple({n: each[n] for n in kept} for each in self.samples), kept, tuple(signatures))

    def groups(self) -> list[tuple[list[int], dict[str, Any]]]:
        """Return (positions, arguments of these samples as one batch) for each set of samples that can share a
        forward."""
        sets: dict[Any, list[int]] = {}
        for i, key in enumerate(self.signatures):
            sets.setdefault(key, []).append(i)
        return [
            (rows, {name: collate(rule, [self.samples[i][name] for i in rows]) for name, rule in self.rules.items()})
            for rows in sets.values()
        ]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """Return a copy on a device, with one transfer per group and argument; only floating-point tensors change
        dtype."""
        samples: list[Mapping[str, Any]] = list(self.samples)
        for rows, arguments in self.groups():
            there = moved(arguments, device, dtype)
            for k, i in enumerate(rows):
                samples[i] = {name: take(rule, there[name], k) for name, rule in self.rules.items()}
        return Condition(tuple(samples), self.rules, self.signatures)

    def flatten(self) -> dict[str, Tensor]:
        """Return the condition as flat tensors, for a safetensors file."""
        return flatten({"samples": self.samples, "rules": dict(self.rules)})

    @classmethod
    def unflatten(cls, tensors: Mapping[str, Tensor]) -> Condition:
        """Rebuild a condition from the tensors of :meth:`flatten`."""
        return cls.of_samples(**unflatten(tensors))

    @classmethod
    def of_batch(cls, arguments: Mapping[str, Any], rules: Mapping[str, Rule], size: int) -> Condition:
        """Make a condition from the arguments of a call with ``size`` prompts."""
        return cls.of_samples(
            [{n: take(rule, arguments[n], i) for n, rule in rules.items()} for i in range(size)], rules
        )

    @classmethod
    def of_samples(cls, samples: Sequence[Mapping[str, Any]], rules: Mapping[str, Rule]) -> Condition:
        """Make a condition from the arguments of calls with one prompt each."""
        keys = tuple(tuple((n, _hashable(signature(rule, s[n]))) for n, rule in rules.items()) for s in samples)
        return cls(tuple(samples), rules, keys)


def _chained(parts: Iterable[tuple]) -> tuple:
    return tuple(item for part in parts for item in part)


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(v) for v in value)
    if isinstance(value, Mapping):
        return tuple((k, _hashable(v)) for k, v in value.items())
    return value
