"""Look layers up in the names of other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

#: The number of a block, in a pattern of names.
NUMBER = "#"


@dataclass(frozen=True, kw_only=True)
class NativePlace:
    """Says where a layer of Diffusers is in the original network.

    Args:
        layer: the layer's name in Diffusers.
        native: the original layer's name.
        parts: Diffusers' layers whose output rows are stacked in the original one, in order; itself alone where
            nothing is stacked.
        swapped: whether the first and second half of its output rows change places; a number: only where it has that
            many times as many outputs as inputs.
    """

    layer: str
    native: str
    parts: tuple[str, ...]
    swapped: bool | int

    @property
    def fused(self) -> bool:
        return len(self.parts) > 1

    def swaps(self, outputs: int, inputs: int) -> bool:
        """Return whether the halves of a layer with these sides change places."""
        return self.swapped if isinstance(self.swapped, bool) else outputs == self.swapped * inputs


@dataclass(frozen=True, kw_only=True)
class TimeEmbedding:
    """Says how a network embeds the time.

    Args:
        module: Diffusers' name of the module that maps sines and cosines of the time to the embedding.
        input: scale and offset of the network's time, ``scale * sigma + offset``.
        factor: the sines and cosines are those of ``factor`` times the network's time.
    """

    module: str
    input: tuple[float, float]
    factor: float

    def angle(self, own_scale: float | None) -> tuple[float, float]:
        """Return scale and offset of what sines and cosines are taken of, ``scale * d + offset`` for d in sigma; with
        ``own_scale`` the network's time is ``own_scale * d``."""
        scale, offset = self.input if own_scale is None else (own_scale, 0.0)
        return self.factor * scale, self.factor * offset


@dataclass(frozen=True, kw_only=True)
class Family:
    """Holds the names of one family of networks.

    Args:
        name: its name in ``names.json``.
        classes: class names of its networks in Diffusers.
        verified: whether its native names were tried in ComfyUI's own code, and not only read in it.
        same_names: whether a layer without a rule keeps its name.
        layers: Diffusers' name -> native name, with `NUMBER` for the number of a block.
        modules: Diffusers' module -> native module, whose layers have the same names inside.
        only_with: layers that a network has (True) or lacks (False) for these rules to hold.
        fused: native name -> the Diffusers layers stacked in it.
        halves_swapped: Diffusers' layers whose halves change places.
        halves_swapped_if: the same, with how many times as many outputs as inputs such a layer has.
        tencent: whether the family has names of Tencent's too.
        convolutions: Diffusers' name -> native name of layers that take the latents, where they are convolutions.
        time: how its networks embed the time; None where that was not written down.
        portable: layouts for one file that is right in most tools, best first.
        reads: layout -> tool -> ``only`` or ``without`` -> patterns of Diffusers' names.
    """

    name: str
    classes: tuple[str, ...]
    verified: bool
    same_names: bool
    layers: Mapping[str, str]
    modules: Mapping[str, str]
    only_with: Mapping[str, bool]
    fused: Mapping[str, tuple[str, ...]]
    halves_swapped: tuple[str, ...]
    halves_swapped_if: Mapping[str, int]
    tencent: bool
    convolutions: Mapping[str, str]
    time: TimeEmbedding | None
    portable: tuple[str, ...]
    reads: Mapping[str, Mapping[str, Mapping[str, tuple[str, ...]]]]

    def place(self, layer: str) -> NativePlace | None:
        """Return where a layer is in the original network; None if no name is known for it."""
        for pattern, native in self.layers.items():
            if (numbers := matched(pattern, layer)) is not None:
                return NativePlace(
                    layer=layer, native=numbered(native, numbers), parts=(layer,), swapped=self._swapped(layer)
                )
        inside = next((each for each in self.modules if layer.startswith(f"{each}.")), None)
        if inside is not None:
            native = self.modules[inside] + layer.removeprefix(inside)
            return NativePlace(layer=layer, native=native, parts=(layer,), swapped=False)
        for native, parts in self.fused.items():
            for part in parts:
                if (numbers := matched(part, layer)) is not None:
                    return NativePlace(
                        layer=layer,
                        native=numbered(native, numbers),
                        parts=tuple(numbered(each, numbers) for each in parts),
                        swapped=False,
                    )
        return NativePlace(layer=layer, native=layer, parts=(layer,), swapped=False) if self.same_names else None

    def _swapped(self, layer: str) -> bool | int:
        if any(matched(pattern, layer) is not None for pattern in self.halves_swapped):
            return True
        times = (n for pattern, n in self.halves_swapped_if.items() if matched(pattern, layer) is not None)
        return next(times, False)


@cache
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(re.escape(part) for part in pattern.split(NUMBER)))


def matched(pattern: str, name: str) -> tuple[str, ...] | None:
    """Return the blocks' numbers in a name that has a pattern; None if it has another."""
    found = _expression(pattern).fullmatch(name)
    return None if found is None else found.groups()


def numbered(pattern: str, numbers: Iterable[str]) -> str:
    """Return a pattern with numbers in it."""
    name = pattern
    for number in numbers:
        name = name.replace(NUMBER, number, 1)
    return name


def places_of(family: Family, layers: Iterable[str]) -> dict[str, NativePlace]:
    """Return layer -> place, for those layers that a name is known for."""
    found = ((layer, family.place(layer)) for layer in layers)
    return {layer: place for layer, place in found if place is not None}


@cache
def document() -> Mapping[str, Any]:
    """Return ``names.json``."""
    return json.loads(files(__package__).joinpath("names.json").read_text(encoding="utf-8"))


@cache
def families() -> Mapping[str, Family]:
    """Return name -> family, for every family that is known."""
    return {name: _family(name, found) for name, found in document()["families"].items()}


def _family(name: str, found: Mapping[str, Any]) -> Family:
    return Family(
        name=name,
        classes=tuple(found["classes"]),
        verified=found["verified"],
        same_names=found["same_names"],
        layers=found["layers"],
        modules=found.get("modules", {}),
        only_with=found.get("only_with", {}),
        fused={native: tuple(parts) for native, parts in found["fused"].items()},
        halves_swapped=tuple(found["halves_swapped"]),
        halves_swapped_if=found["halves_swapped_if_outputs_are"],
        tencent=found["tencent"],
        convolutions=found.get("convolutions", {}),
        time=_time(found.get("time")),
        portable=tuple(found["portable"]),
        reads=found["reads"],
    )


def _time(found: Mapping[str, Any] | None) -> TimeEmbedding | None:
    if found is None:
        return None
    scale, offset = found["input"]
    return TimeEmbedding(module=found["module"], input=(scale, offset), factor=found["factor"])


def family_of(kind: str | None, layers: Collection[str] = ()) -> Family | None:
    """Return the family of a class of networks, by the name of the class; None if it is not known.

    Args:
        layers: names of the network's layers, if they are known: some classes number their blocks by how many they
            have, and a family's rules hold for one number.
    """
    found = next((family for family in families().values() if kind in family.classes), None)
    if found is None or not layers:
        return found
    return found if all((layer in layers) == there for layer, there in found.only_with.items()) else None


def tencent_name(native: str) -> str:
    """Return Tencent's name of a layer that has a native one."""
    for ending, other in document()["tencent_endings"].items():
        if native.endswith(ending):
            return native.removesuffix(ending) + other
    return native


@cache
def refused_pipelines() -> Mapping[str, str]:
    """Return ``refused.json``: class of a pipeline that cannot be trained -> why. What the probe sees by itself, such
    as a scheduler that is not flow matching, is not in it."""
    return json.loads(files(__package__).joinpath("refused.json").read_text(encoding="utf-8"))
