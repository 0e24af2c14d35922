"""Write a trained adapter under the names that other programs read.

Names, and which program reads which layer of which layout, are data: ``flowhooks.naming``. The tests compare the change
of every layer with the trained one, read back by flowhooks and, where it has a loader, by Diffusers.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from flowhooks.adapters.adapter_file import AdapterFile, read_adapter, write_aside, write_tensors
from flowhooks.adapters.base_weights import BaseWeights
from flowhooks.adapters.dora import row_norms
from flowhooks.adapters.file_config import file_config, require_configured, require_listed, scale_of
from flowhooks.adapters.names import (
    ALPHA,
    CONFIG_KEY,
    LAYERS_KEY,
    LORA_FILE,
    METADATA_KEY,
    TRAINED_KEY,
    TRANSFORMER_KEY,
    diffusers_prefix,
    find_file,
    first_few,
    layer_name,
    lycoris_names,
    read_json,
    refuse_other_file,
)
from flowhooks.adapters.native_file import keys_of, pieces_in, split_key
from flowhooks.adapters.network import Network, network_in, network_told, require_layers
from flowhooks.adapters.peft_adapter import diffusers_metadata, plain_config
from flowhooks.adapters.pieces import Piece, stacked
from flowhooks.errors import AdapterError
from flowhooks.export.layout_choice import COMFYUI, COMFYUI_OF_DORA, DIFFUSERS, MUSUBI, LayoutChoice
from flowhooks.manifest import CHECKPOINT
from flowhooks.naming import LAYOUTS, FileLayout, NativePlace, Reading, places_of, tool_version
from flowhooks.reading import user_path

DIALECTS = ("portable", "diffusers", "comfyui", "kohya", "musubi", "lycoris")
_LORA_ONLY = {"diffusers": DIFFUSERS, "musubi": MUSUBI}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Describes a file that was written.

    Args:
        file: its path.
        layers: number of Diffusers' layers whose change it holds.
        readings: what each program makes of it that is known to read such a file.
        left_out: layers that were left out as asked.
        error: relative error of changes that were turned into LoRA, in the Frobenius norm; None where none was.
        tried: whether its names were tried in ComfyUI, and not only read in its source.
        dora: whether it holds a DoRA.
    """

    file: Path
    layers: int
    readings: tuple[Reading, ...] = ()
    left_out: tuple[str, ...] = ()
    error: float | None = None
    tried: bool = True
    dora: bool = False

    @property
    def right_in(self) -> tuple[str, ...]:
        """Return the programs in which it is right, with the version it was tried in."""
        return tuple(self._versioned(each.tool) for each in self.readings if not each.lost)

    def _versioned(self, tool: str) -> str:
        if not self.tried:
            return f"{tool} (by its source, not tried)"
        version = COMFYUI_OF_DORA if self.dora and tool == COMFYUI else tool_version(tool)
        return f"{tool} {version}" if version[0].isdigit() else tool


def export_lora(source: Path, dialect: str, output: Path | None, *, model: Path | None = None) -> Path:
    """Write the adapter at ``source`` as `export_adapter` does. Returns the new file's path."""
    return export_adapter(source, dialect, output, model=model).file


def export_adapter(
    source: Path,
    dialect: str,
    output: Path | None,
    *,
    model: Path | None = None,
    as_lora: int | None = None,
    leave_out: bool = False,
) -> Exported:
    """Write the adapter at ``source`` (a file, or the folder with it) in a dialect, one of `DIALECTS`.

    ``output`` is a .safetensors file, or a folder; None means the folder of ``source``, and for a checkpoint the run's
    folder, since checkpoints are removed by the run. A Diffusers LoRA whose strength is in its matrices is copied to
    ``diffusers``.

    Args:
        model: folder of the pipeline, or network, that it is for: tells its layers where the file does not.
        as_lora: rank of the LoRA that changes of other kinds are turned into, where the dialect cannot hold them.
        leave_out: whether layers that the dialect's program would drop are left out; else they are an error.

    Raises:
        AdapterError: the file is no LoRA, LoHa or LoKr of Linear layers, a layer has no name there or would be
            dropped, the dialect cannot hold a change, or the output exists already.
    """
    if dialect not in DIALECTS:
        raise AdapterError(f"Unknown format {dialect!r}; expected one of {', '.join(DIALECTS)}.")
    file = find_file(Path(source))
    given = None if model is None else network_in(user_path(model))
    read = read_adapter(file, network=given)
    as_it_is = dialect == "diffusers" and as_lora is None and _is_whole(read)
    target = _target(file, "" if as_it_is else f"_{dialect}", output)
    if target.exists() and target.samefile(file):
        raise AdapterError(
            f"{target}: exists already, and is in format {dialect!r} as it stands. Use that file, or name an output to "
            "copy it to."
        )
    if target.exists():
        raise AdapterError(f"{target}: exists already and is not overwritten. Delete it or choose another output.")
    if as_it_is and pieces_in(file, read.tensors) is None:
        # Convolutions, which no other format has.
        write_aside(target, lambda aside: shutil.copyfile(file, aside))
        return Exported(
            file=target,
            layers=len({layer_name(key) for key in read.tensors}),
            readings=(Reading(tool=DIFFUSERS, lost=()),),
        )
    network = network_told(read.header, str(file)) if given is None else given
    base = None if model is None else BaseWeights(user_path(model))
    try:
        return _Export(read, network, base, dialect, as_lora, leave_out).write(target, as_it_is=as_it_is)
    except AdapterError as error:
        raise error if str(error).startswith((str(file), str(target))) else AdapterError(f"{file}: {error}") from None


def _target(file: Path, suffix: str, output: Path | None) -> Path:
    folder = (file.parent if file.parent.name else file.parent.absolute()) if output is None else user_path(output)
    if folder.suffix == ".safetensors" and not folder.is_dir():
        return folder
    refuse_other_file(folder)
    if output is None and CHECKPOINT.fullmatch(folder.name):
        return folder.parent / f"{folder.name}{suffix}.safetensors"
    return folder / f"{Path(LORA_FILE).stem}{suffix}.safetensors"


def _is_whole(read: AdapterFile) -> bool:
    """Return whether a file is a Diffusers LoRA as it stands, and right in tools that know no alpha."""
    if read.kind != "diffusers" or read.alphas or read.renamed:
        return False
    config = file_config(read)
    return all(scale_of(config, key.partition(".lora_")[0]) == 1 for key in read.tensors)


def _foreign(read: AdapterFile) -> list[str]:
    """Return the keys of a file that no LoRA, LoHa or LoKr of Linear layers has."""
    odd = [
        key for key, t in read.tensors.items() if split_key(key) is None or (t.ndim != 2 and not key.endswith(ALPHA))
    ]
    return odd or list(read.tensors)


def pieces_of(read: AdapterFile, network: Network | None) -> list[Piece]:
    """Return the changes of a file's layers under Diffusers' names.

    Args:
        network: the network that the file is for; needed for a LyCORIS file that does not name its layers.

    Raises:
        AdapterError: it holds something else than LoRA, LoHa and LoKr of Linear layers, or its layers are not known.
    """
    found = pieces_in(read.path, read.tensors)
    if found is None:
        raise AdapterError(
            f"{read.path}: holds more than a LoRA, LoHa or LoKr of Linear layers "
            f"({first_few(_foreign(read), 1)}). Convolutions, and adapters that scale the base's weights, have no "
            "counterpart in the other formats."
        )
    if read.kind != "lycoris":
        config = file_config(read)
        ranks = {name: piece.rank for name, piece in found.items()}
        require_configured(read, config, ranks, () if network is None else network.shapes)
        return [replace(piece, scale=scale_of(config, name)) for name, piece in found.items()]
    names: Iterable[str] = () if network is None else network.shapes
    if LAYERS_KEY in read.header:
        names = read_json(read.header[LAYERS_KEY], origin=f"{read.path}: header `{LAYERS_KEY}`")
        require_listed(read, names)
    known = lycoris_names(read.path, found, names)
    return [replace(piece, name=known[name]) for name, piece in found.items()]


class _Export:
    """Turns one file into a dialect."""

    def __init__(
        self,
        read: AdapterFile,
        network: Network | None,
        base: BaseWeights | None,
        dialect: str,
        as_lora: int | None,
        leave_out: bool,
    ):
        self.base = base
        self.read, self.network, self.dialect, self.leave_out = read, network, dialect, leave_out
        self.kind = None if network is None else network.kind
        self.pieces = pieces_of(read, network)
        if base is not None:
            self.pieces = [replace(piece, base=partial(base.weight, piece.name)) for piece in self.pieces]
        self.error: float | None = None
        if all(_is_nothing(piece) for piece in self.pieces):
            raise AdapterError(
                "changes nothing, a matrix of every layer is all zeros. It was saved before its first update, or its "
                "weights were lost: give the file of a finished training."
            )
        if network is not None:
            require_layers({piece.name: piece.shape for piece in self.pieces}, network)
        if as_lora is not None:
            self._turn_into_loras(as_lora)
        self.plain = all(piece.kind == "lora" for piece in self.pieces)
        self.dora = any(piece.kind == "dora" for piece in self.pieces)
        held = ("lora", "dora") if dialect == "diffusers" else ("lora",)
        other = next((piece for piece in self.pieces if piece.kind not in held), None)
        if other is not None and dialect in _LORA_ONLY:
            # What a DoRA changes depends on the base's weights.
            model = ", the pipeline's folder with `--model`" if self.dora and base is None else ""
            raise AdapterError(
                f"`{other.name}` is changed by a {other.kind}, and {_LORA_ONLY[dialect]} reads plain LoRA only in such "
                f"a file. Turn it into the nearest LoRA with `--as-lora RANK`{model}, or use format 'comfyui' or "
                "'lycoris'."
            )

    def write(self, target: Path, *, as_it_is: bool) -> Exported:
        layers = [piece.name for piece in self.pieces]
        prefix = self.read.network if self.kind is None else diffusers_prefix(self.kind)
        choice = LayoutChoice(
            dialect=self.dialect,
            kind=self.kind,
            network=() if self.network is None else self.network.shapes,
            layers=layers,
            prefix=prefix,
            plain=self.plain,
            leave_out=self.leave_out,
            dora=self.dora,
        )
        name, readings = choice.layout()
        layout = replace(LAYOUTS[name], alphas=True) if self._keeps_alphas(name) else LAYOUTS[name]
        left: tuple[str, ...] = ()
        if self.leave_out:
            dropped = [layer for each in readings if each.tool in choice.meant_for() for layer in each.lost]
            left = tuple(dict.fromkeys(dropped))
            self.pieces = [piece for piece in self.pieces if piece.name not in left]
            readings = [
                Reading(tool=each.tool, lost=tuple(layer for layer in each.lost if layer not in left))
                for each in readings
            ]
            if not self.pieces:
                raise AdapterError("no layer is left that the file's program reads")
        header = {key: value for key, value in self.read.header.items() if key not in _NOT_OURS}
        if self.network is not None and self.network.kind is not None:
            header.setdefault(TRANSFORMER_KEY, self.network.kind)
        if name == choice.own:
            ranks = {piece.name: piece.rank or 1 for piece in self.pieces}
            header[METADATA_KEY] = diffusers_metadata(plain_config(ranks, use_dora=self.dora), prefix)
        if name == "lycoris.diffusers":
            header[LAYERS_KEY] = json.dumps({piece.name: piece.shape for piece in self.pieces})
        if self.dora and layout.names != "diffusers":
            # ComfyUI divides by the norms of the base's rows.
            self.pieces = [each.over_base_norms() if each.kind == "dora" else each for each in self.pieces]
        places = {} if layout.names == "diffusers" else places_of(choice.known_family(), layers)
        if as_it_is and not left:
            write_aside(target, lambda aside: shutil.copyfile(self.read.path, aside))
        else:
            write_tensors(target, self._tensors(layout, places), header)
        untried = choice.family is not None and not choice.family.verified and layout.names != "diffusers"
        return Exported(
            file=target,
            layers=len(self.pieces),
            readings=tuple(readings),
            left_out=left,
            error=self.error,
            tried=not untried,
            dora=self.dora,
        )

    def _keeps_alphas(self, name: str) -> bool:
        return self.dialect == "comfyui" or not self.plain or LAYOUTS[name].alphas

    def _turn_into_loras(self, rank: int) -> None:
        off = size = 0.0
        found = []
        for piece in self.pieces:
            low = piece.as_lora(rank)
            if low is not piece:
                change = piece.change()
                off += float((low.change() - change).square().sum())
                size += float(change.square().sum())
            found.append(low)
        if all(low is piece for low, piece in zip(found, self.pieces, strict=True)):
            raise AdapterError(
                f"is a LoRA already, and `--as-lora {rank}` is for other kinds. Leave it out; `flowhooks merge` with "
                "method 'svd' makes a smaller rank."
            )
        self.pieces = found
        self.error = None if not size else math.sqrt(off / size)

    def _tensors(self, layout: FileLayout, places: Mapping[str, NativePlace]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        if layout.names == "diffusers":
            for piece in self.pieces:
                tensors |= keys_of(piece, layout.key(_same(piece.name)), layout)
            return tensors
        groups: dict[str, tuple[NativePlace, dict[str, Piece]]] = {}
        for piece in self.pieces:
            place = places[piece.name]
            groups.setdefault(place.native, (place, {}))[1][piece.name] = piece
        for place, parts in groups.values():
            tensors |= keys_of(self._native(place, parts), layout.key(place), layout)
        return tensors

    def _native(self, place: NativePlace, parts: Mapping[str, Piece]) -> Piece:
        if not place.fused:
            piece = parts[place.layer]
            return piece.swapped() if place.swaps(*piece.shape) else piece
        if any(piece.kind == "dora" for piece in parts.values()):
            parts = {part: parts.get(part) or self._still(parts, part) for part in place.parts}
        rows = [parts[part].shape[0] if part in parts else self._outputs(place, part) for part in place.parts]
        try:
            return stacked(place.native, [parts.get(part) for part in place.parts], rows)
        except AdapterError as error:
            raise AdapterError(
                f"{error}. Turn it into the nearest LoRA with `--as-lora RANK`, or use format 'lycoris'."
            ) from None

    def _still(self, parts: Mapping[str, Piece], part: str) -> Piece:
        """Return a DoRA of rank 0 that leaves a layer as it is, whose rows keep their own norms."""
        assert self.base is not None
        weight = self.base.weight(part)
        low = next(iter(parts.values())).factors["down"]
        factors = {"down": low[:0], "up": low.new_zeros(len(weight), 0), "magnitude": row_norms(weight).float()}
        return Piece(name=part, kind="dora", factors=factors, scale=1.0)

    def _outputs(self, place: NativePlace, part: str) -> int:
        """Return how many outputs a layer has that the file does not change."""
        shape = None if self.network is None else self.network.shapes.get(part)
        if shape is None:
            raise AdapterError(
                f"`{place.native}` is one layer, of which `{part}` is a part that the file does not change, and "
                "nothing tells how many outputs it has. Give the pipeline's folder with `--model`."
            )
        return shape[0]


#: Keys of a header that describe the file it was read from.
_NOT_OURS = (METADATA_KEY, CONFIG_KEY, LAYERS_KEY, TRAINED_KEY, "format")


def _is_nothing(piece: Piece) -> bool:
    """Return whether a factor of a change is zero. That of a DoRA may be by its magnitudes alone."""
    return piece.kind != "dora" and any(not factor.any() for factor in piece.factors.values())


def _same(layer: str) -> NativePlace:
    return NativePlace(layer=layer, native=layer, parts=(layer,), swapped=False)
