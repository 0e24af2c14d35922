"""Describe layouts of adapter files, and which tool reads which layers of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flowhooks.naming.rules import Family, NativePlace, document, matched, tencent_name

#: Names in a pipeline of the networks that can be trained, in the order in which the first that is there is taken.
NETWORKS = ("transformer", "transformer_2", "unet")


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """Says how the keys of a file are made.

    Args:
        prefix: what stands before a layer's name.
        names: whose names its layers have: ``diffusers``, ``native`` or ``tencent``.
        dotted: whether the dots of names are kept; else they are underscores.
        alphas: whether it has an alpha for each layer; else the strength is in the matrices.
    """

    prefix: str
    names: str
    dotted: bool
    alphas: bool

    def key(self, place: NativePlace) -> str:
        """Return how the keys of a layer begin."""
        name = {"diffusers": place.layer, "native": place.native}.get(self.names) or tencent_name(place.native)
        return self.prefix + (name if self.dotted else name.replace(".", "_"))


#: Name in ``names.json`` -> layout.
LAYOUTS: Mapping[str, FileLayout] = {
    **{
        f"{network}.diffusers": FileLayout(prefix=f"{network}.", names="diffusers", dotted=True, alphas=False)
        for network in ("transformer", "unet")
    },
    **{
        f"diffusion_model.{names}": FileLayout(prefix="diffusion_model.", names=names, dotted=True, alphas=False)
        for names in ("diffusers", "native", "tencent")
    },
    **{
        f"lora_unet.{names}": FileLayout(prefix="lora_unet_", names=names, dotted=False, alphas=True)
        for names in ("diffusers", "native", "tencent")
    },
    "lycoris.diffusers": FileLayout(prefix="lycoris_", names="diffusers", dotted=False, alphas=True),
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Says what a tool makes of a file.

    Args:
        tool: the tool's name.
        lost: Diffusers' names of the layers that it drops or gets wrong.
    """

    tool: str
    lost: tuple[str, ...]


def fits(family: Family, layout: str, layers: Iterable[str]) -> list[Reading]:
    """Return what each tool that is known to read a layout makes of a file with these layers."""
    layers = list(layers)
    return [
        Reading(tool=tool, lost=tuple(layer for layer in layers if not _taken(layer, limits)))
        for tool, limits in family.reads.get(layout, {}).items()
    ]


def _taken(layer: str, limits: Mapping[str, Iterable[str]]) -> bool:
    inside = any(begins(layer, pattern) for pattern in limits.get("only", (layer,)))
    return inside and not any(begins(layer, pattern) for pattern in limits.get("without", ()))


def begins(layer: str, pattern: str) -> bool:
    """Return whether a layer is the one, or inside the module, that a pattern names."""
    parts = layer.split(".")[: len(pattern.split("."))]
    return matched(pattern, ".".join(parts)) is not None


def tool_version(tool: str) -> str:
    """Return the version of a tool that layouts were tried in."""
    return document()["tools"][tool]


def verified_on() -> str:
    """Return the day on which layouts were tried, ISO 8601."""
    return document()["verified"]
