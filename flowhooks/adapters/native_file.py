"""Read the layers of adapter files in the names of any tool, by the rules of ``flowhooks.naming``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flowhooks.adapters.names import ALPHA, DORA_SCALE, MAGNITUDE, bare_key, first_few
from flowhooks.adapters.network import Network
from flowhooks.adapters.pieces import Piece
from flowhooks.errors import AdapterError
from flowhooks.naming import LAYOUTS, Family, FileLayout, NativePlace, family_of, places_of, tencent_name

#: What may stand before a layer's name, the longest first.
PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "unet.",
    "lora_transformer_",
    "lora_unet_",
    "lycoris_",
    "",
)
#: Ending of a key -> kind of the change and its factor.
FACTORS: Mapping[str, tuple[str, str]] = {
    **{f".lora_{side}{mid}.weight": ("lora", "down") for side, mid in (("A", ""), ("down", ""), ("A", ".default"))},
    **{f".lora_{side}{mid}.weight": ("lora", "up") for side, mid in (("B", ""), ("up", ""), ("B", ".default"))},
    f".{MAGNITUDE}": ("lora", "magnitude"),
    **{f".hada_{name}": ("loha", name) for name in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{f".lokr_{name}": ("lokr", name) for name in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b")},
}
_WHOLE = {
    "lora": ({"down", "up"},),
    "dora": ({"down", "up", "magnitude"},),
    "loha": ({"w1_a", "w1_b", "w2_a", "w2_b"},),
    "lokr": tuple(first | second for first in ({"w1"}, {"w1_a", "w1_b"}) for second in ({"w2"}, {"w2_a", "w2_b"})),
}


def split_key(key: str) -> tuple[str, str] | None:
    """Return a key's layer, with what stands before its name, and the ending; None for a key of another kind."""
    return next(
        ((key.removesuffix(ending), ending) for ending in (*FACTORS, ALPHA) if key.endswith(ending)),
        None,
    )


def pieces_in(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Piece] | None:
    """Return the changes of a file's layers, by the layer's name with what stands before it; None if it holds more
    than LoRA, LoHa and LoKr of Linear layers.

    The strength of each is its alpha divided by the rank, and 1 without an alpha.

    Raises:
        AdapterError: a factor is missing or has an impossible shape.
    """
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    kinds: dict[str, str] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        split = split_key(key)
        if split is None:
            return None
        layer, ending = split
        if ending == ALPHA:
            if tensor.numel() != 1:
                raise AdapterError(f"{file}: `{key}` has shape {list(tensor.shape)}; expected one number.")
            alphas[layer] = float(tensor)
            continue
        kind, factor = FACTORS[ending]
        if kinds.setdefault(layer, kind) != kind:
            return None
        found[layer][factor] = tensor
    lost = [layer for layer in alphas if layer not in found]
    if lost:
        raise AdapterError(f"{file}: has an alpha, but no matrices, for {first_few(lost)}. It is incomplete.")
    pieces = {}
    for layer, factors in found.items():
        kind = "dora" if "magnitude" in factors else kinds[layer]
        piece = Piece(name=layer, kind=kind, factors=factors, scale=1.0)
        check_factors(file, piece)
        if any(tensor.ndim != (1 if name == "magnitude" else 2) for name, tensor in factors.items()):
            return None
        rank = piece.rank
        scale = alphas[layer] / rank if layer in alphas and rank is not None else 1.0
        pieces[layer] = replace(piece, scale=scale)
    return pieces


def check_factors(file: Path, piece: Piece) -> None:
    """Raise `AdapterError` for a layer that lacks a factor, or whose factors do not multiply."""
    name, factors = piece.name, piece.factors
    if set(factors) not in _WHOLE[piece.kind]:
        matrices = "only one of its two matrices"
        what = matrices if piece.kind in ("lora", "dora") else f"only {', '.join(sorted(factors))}"
        raise AdapterError(f"{file}: `{name}` has {what}. The file is incomplete: export it again from the run.")
    for outer, inner in (("up", "down"), ("w1_a", "w1_b"), ("w2_a", "w2_b")):
        if outer not in factors:
            continue
        high, low = factors[outer], factors[inner]
        if min(high.ndim, low.ndim) < 2 or high.shape[1] != low.shape[0] or not low.shape[0]:
            raise AdapterError(
                f"{file}: `{name}` has shapes {list(low.shape)} and {list(high.shape)}; expected [rank, in] and [out, "
                "rank]. The file is damaged."
            )
    if piece.kind == "dora" and factors["magnitude"].numel() != len(factors["up"]):
        raise AdapterError(
            f"{file}: `{name}` has {factors['magnitude'].numel()} magnitudes for {len(factors['up'])} outputs. The "
            "file is damaged."
        )


class Names:
    """Knows the names that a network's layers have in other tools, dotted and with underscores."""

    def __init__(self, network: Network):
        self.network = network
        self.family: Family | None = family_of(network.kind, network.shapes)
        self.places: Mapping[str, NativePlace] = {}
        if self.family is not None:
            self.places = places_of(self.family, (n for n, shape in network.shapes.items() if len(shape) == 2))
        self.original = {place.native: place for place in self.places.values()}
        known = {"diffusers": {name: name for name in network.shapes}, "native": {n: n for n in self.original}}
        if self.family is not None and self.family.tencent:
            known["tencent"] = {tencent_name(name): name for name in self.original}
        #: Whose names -> name, dotted or not -> Diffusers' name, or the native one.
        self.known = {
            whose: {**{name.replace(".", "_"): own for name, own in names.items()}, **names}
            for whose, names in known.items()
        }

    def whose(self, layers: Iterable[str]) -> dict[str, tuple[str, str]] | None:
        """Return for each key's layer whose name it is and the dotted name; None if there is one that no tool names.

        One tool's names are tried for all layers first.
        """
        layers = list(layers)
        for names in ("native", "tencent", "diffusers"):
            found = [self._bare(layer, names) for layer in layers]
            if all(each is not None for each in found):
                return {
                    layer: ("diffusers" if names == "diffusers" else "native", each)
                    for layer, each in zip(layers, found, strict=True)
                    if each is not None
                }
        mixed = {
            layer: next(
                (
                    ("diffusers" if names == "diffusers" else "native", each)
                    for names in ("native", "tencent", "diffusers")
                    if (each := self._bare(layer, names)) is not None
                ),
                None,
            )
            for layer in layers
        }
        found_all = {layer: each for layer, each in mixed.items() if each is not None}
        return found_all if len(found_all) == len(layers) else None

    def _bare(self, layer: str, whose: str) -> str | None:
        names = self.known.get(whose, {})
        bare = (layer.removeprefix(prefix) for prefix in PREFIXES if layer.startswith(prefix))
        return next((names[name] for name in bare if name in names), None)

    def apart(self, pieces: Mapping[str, Piece]) -> list[Piece] | None:
        """Return changes under Diffusers' names, those of stacked layers cut apart; None if a name is not known.

        A part of a stacked layer that does not change is left out, and so are ranks that change nothing.

        Raises:
            AdapterError: a change has other sides than its layer, or does not split.
        """
        named = self.whose(pieces)
        if named is None:
            return None
        result: list[Piece] = []
        if len(set(named.values())) < len(named):
            raise AdapterError("holds one layer twice, under two names")
        for layer, piece in pieces.items():
            names, name = named[layer]
            if names == "diffusers":
                result.append(self._sized(replace(piece, name=name), self.network.shapes[name], layer))
                continue
            place = self.original[name]
            shapes = [self.network.shapes[part] for part in place.parts]
            rows = [shape[0] for shape in shapes]
            whole = self._sized(replace(piece, name=place.layer), (sum(rows), shapes[0][1]), layer)
            if place.swaps(*whole.shape):
                whole = whole.swapped()
            if not place.fused:
                result.append(whole)
                continue
            ends = [sum(rows[: i + 1]) for i in range(len(rows))]
            cut = [
                replace(whole.rows(end - height, end), name=part)
                for part, height, end in zip(place.parts, rows, ends, strict=True)
            ]
            small = [each.compact() for each in cut]
            kept = [each for each in small if each is not None]
            # A file whose change is zero keeps its layers.
            result += kept or cut
        return result

    @staticmethod
    def _sized(piece: Piece, shape: Iterable[int], layer: str) -> Piece:
        if piece.shape != tuple(shape):
            raise AdapterError(
                f"`{layer}` changes a weight of shape {list(piece.shape)}, and that of `{piece.name}` is "
                f"{list(shape)}. It was made for another model: use the base model it was trained on."
            )
        return piece


def network_named(file: Path, tensors: Mapping[str, Tensor]) -> Network:
    """Describe the layers that a file with Diffusers' names changes, by the sides of its matrices."""
    pieces = pieces_in(file, tensors) or {}
    return Network(kind=None, shapes={bare_key(name): piece.shape for name, piece in pieces.items()})


def in_own_names(file: Path, tensors: Mapping[str, Tensor], network: Network) -> dict[str, Tensor] | None:
    """Return a file's tensors as a Diffusers LoRA, or as a LyCORIS file where it holds other kinds; None where the
    rules do not know all its names.

    Strengths are in the matrices.

    Raises:
        AdapterError: it is damaged, or for a model with other sides.
    """
    pieces = pieces_in(file, tensors)
    if pieces is None:
        return None
    try:
        own = Names(network).apart(pieces)
    except AdapterError as error:
        raise AdapterError(f"{file}: {error}") from None
    if own is None:
        return None
    plain = all(piece.kind == "lora" for piece in own)
    layout = LAYOUTS["transformer.diffusers" if plain else "lycoris.diffusers"]
    result: dict[str, Tensor] = {}
    for piece in own:
        name = piece.name if layout.dotted else piece.name.replace(".", "_")
        result |= keys_of(piece, layout.prefix + name, layout)
    return result


def keys_of(piece: Piece, name: str, layout: FileLayout) -> dict[str, Tensor]:
    """Return a change as the keys and tensors of a layout.

    Args:
        name: what its keys begin with.
    """
    # Of a LoKr of whole matrices no tool reads the alpha, and of other layouts none has one.
    piece = piece if layout.alphas and piece.rank is not None else piece.folded()
    if piece.kind in ("lora", "dora"):
        first, second = ("lora_A", "lora_B") if layout.dotted else ("lora_down", "lora_up")
        found = {f"{name}.{first}.weight": piece.factors["down"], f"{name}.{second}.weight": piece.factors["up"]}
    else:
        start = {"loha": "hada", "lokr": "lokr"}[piece.kind]
        found = {f"{name}.{start}_{factor}": tensor for factor, tensor in piece.factors.items()}
    if piece.kind == "dora":
        # One dimension in PEFT and Diffusers; elsewhere two, of which the first tells the axis of the norm.
        own, magnitude = layout is LAYOUTS["transformer.diffusers"], piece.factors["magnitude"]
        found[f"{name}.{MAGNITUDE if own else DORA_SCALE}"] = magnitude if own else magnitude[:, None]
    if layout.alphas or piece.kind in ("loha", "lokr"):
        found[f"{name}{ALPHA}"] = torch.tensor(piece.scale * (piece.rank or 1), dtype=torch.float32)
    return found
