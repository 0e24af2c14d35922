"""Write a trained adapter under the names that other programs read.

Names, and which program reads which layer of which layout, are data: ``flowhooks.naming``. The tests compare the change
of every layer with the trained one, read back by flowhooks and, where it has a loader, by Diffusers.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from flowhooks.adapters.adapter_file import AdapterFile, read_adapter, write_aside, write_tensors
from flowhooks.adapters.file_config import file_config, scale_of
from flowhooks.adapters.names import (
    ALPHA,
    CONFIG_KEY,
    LAYERS_KEY,
    LORA_FILE,
    LYCORIS_PREFIX,
    METADATA_KEY,
    TRAINED_KEY,
    TRANSFORMER_KEY,
    find_file,
    first_few,
    read_json,
)
from flowhooks.adapters.native_file import keys_of, pieces_in, split_key
from flowhooks.adapters.network import Network, network_in, network_told
from flowhooks.adapters.peft_adapter import diffusers_metadata, plain_config
from flowhooks.adapters.pieces import Piece, stacked
from flowhooks.errors import AdapterError
from flowhooks.manifest import CHECKPOINT
from flowhooks.naming import (
    LAYOUTS,
    Family,
    FileLayout,
    NativePlace,
    Reading,
    families,
    family_of,
    fits,
    places_of,
    tool_version,
)
from flowhooks.reading import user_path

DIALECTS = ("portable", "diffusers", "comfyui", "kohya", "musubi", "lycoris")
_COMFYUI, _DIFFUSERS, _MUSUBI, _SCRIPTS, _LYCORIS = "ComfyUI", "Diffusers", "musubi-tuner", "sd-scripts", "LyCORIS"
_OWN = "transformer.diffusers"
_LORA_ONLY = {"diffusers": _DIFFUSERS, "musubi": _MUSUBI}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Describes a file that was written.

    Args:
        file: its path.
        layers: number of Diffusers' layers whose change it holds.
        readings: what each program makes of it that is known to read such a file.
        left_out: layers that were left out as asked.
        error: relative error of changes that were turned into LoRA, in the Frobenius norm; None where none was.
        note: what else is to be known of it.
    """

    file: Path
    layers: int
    readings: tuple[Reading, ...] = ()
    left_out: tuple[str, ...] = ()
    error: float | None = None
    note: str | None = None

    @property
    def right_in(self) -> tuple[str, ...]:
        """Return the programs in which it is right, with the version it was tried in."""
        return tuple(_versioned(each.tool) for each in self.readings if not each.lost)


def _versioned(tool: str) -> str:
    version = tool_version(tool)
    return f"{tool} {version}" if version and version[0].isdigit() else tool


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
    target = _target(file, dialect, output)
    if target.exists() and target.samefile(file):
        raise AdapterError(
            f"{target}: exists already, and is in format {dialect!r} as it stands. Use that file, or name an output to "
            "copy it to."
        )
    if target.exists():
        raise AdapterError(f"{target}: exists already and is not overwritten. Delete it or choose another output.")
    if dialect == "diffusers" and _is_whole(read):
        readings = (Reading(tool=_DIFFUSERS, lost=()),)
        write_aside(target, lambda aside: shutil.copyfile(file, aside))
        return Exported(
            file=target, layers=len({key.partition(".lora_")[0] for key in read.tensors}), readings=readings
        )
    network = network_told(read.header, str(file)) if given is None else given
    try:
        return _Export(read, network, dialect, as_lora, leave_out).write(target)
    except AdapterError as error:
        raise error if str(error).startswith(str(file)) else AdapterError(f"{file}: {error}") from None


def _target(file: Path, dialect: str, output: Path | None) -> Path:
    suffix = "" if dialect == "diffusers" else f"_{dialect}"
    folder = (file.parent if file.parent.name else file.parent.absolute()) if output is None else user_path(output)
    if folder.suffix == ".safetensors":
        return folder
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
        return [replace(piece, scale=scale_of(config, name)) for name, piece in found.items()]
    names: Iterable[str] = () if network is None else network.shapes
    if LAYERS_KEY in read.header:
        names = read_json(read.header[LAYERS_KEY], origin=f"{read.path}: header `{LAYERS_KEY}`")
    known = {f"{LYCORIS_PREFIX}_{name}".replace(".", "_"): name for name in names}
    unknown = [name for name in found if name not in known]
    if unknown:
        raise AdapterError(
            f"{read.path}: no layer is known for {first_few(unknown)}; the keys of LyCORIS lose the dots of a name. "
            "Give the pipeline's folder with `--model`."
        )
    return [replace(piece, name=known[name]) for name, piece in found.items()]


class _Export:
    """Turns one file into a dialect."""

    def __init__(self, read: AdapterFile, network: Network | None, dialect: str, as_lora: int | None, leave_out: bool):
        self.read, self.network, self.dialect, self.leave_out = read, network, dialect, leave_out
        self.kind = None if network is None else network.kind
        self.family = family_of(self.kind)
        self.pieces = pieces_of(read, network)
        self.error: float | None = None
        self._require_layers()
        if as_lora is not None:
            self._turn_into_loras(as_lora)
        self.plain = all(piece.kind == "lora" for piece in self.pieces)
        if not self.plain and dialect in _LORA_ONLY:
            other = next(piece for piece in self.pieces if piece.kind != "lora")
            raise AdapterError(
                f"`{other.name}` is changed by a {other.kind}, and {_LORA_ONLY[dialect]} reads plain LoRA only in such "
                "a file. Turn it into the nearest LoRA with `--as-lora RANK`, or use format 'comfyui' or 'lycoris'."
            )

    def write(self, target: Path) -> Exported:
        name, readings = self._layout()
        layout = replace(LAYOUTS[name], alphas=True) if self._keeps_alphas(name) else LAYOUTS[name]
        left: tuple[str, ...] = ()
        if self.leave_out:
            dropped = [layer for each in readings if each.tool in self._meant_for() for layer in each.lost]
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
        if name == _OWN:
            ranks = {piece.name: piece.rank or 1 for piece in self.pieces}
            header[METADATA_KEY] = diffusers_metadata(plain_config(ranks))
        if name == "lycoris.diffusers":
            header[LAYERS_KEY] = json.dumps({piece.name: piece.shape for piece in self.pieces})
        write_tensors(target, self._tensors(layout), header)
        unverified = self.family is not None and not self.family.verified and layout.names != "diffusers"
        return Exported(
            file=target,
            layers=len(self.pieces),
            readings=tuple(readings),
            left_out=left,
            error=self.error,
            note="its names were read in ComfyUI's source, and not tried there" if unverified else None,
        )

    def _keeps_alphas(self, name: str) -> bool:
        return self.dialect == "comfyui" or not self.plain or LAYOUTS[name].alphas

    def _layout(self) -> tuple[str, list[Reading]]:
        """Return the layout to write, and what each program that reads it makes of these layers. Raises `AdapterError`
        where the program that it is for would drop one."""
        layers = [piece.name for piece in self.pieces]
        if self.dialect == "diffusers" or (self.dialect == "portable" and self._unknown() and self.plain):
            own = [] if self.family is None else fits(self.family, _OWN, layers)
            return _OWN, own or [Reading(tool=_DIFFUSERS, lost=())]
        if self.dialect == "lycoris":
            found = [] if self.family is None else fits(self.family, "lycoris.diffusers", layers)
            return "lycoris.diffusers", [Reading(tool=_LYCORIS, lost=()), *found]
        family = self._known_family()
        self._require_names(family)
        if self.dialect == "portable":
            return self._portable(family, layers)
        name = self._one(family)
        readings = fits(family, name, layers)
        if self.dialect == "comfyui" or not self.plain:
            # The layouts of other programs have no alphas, and no other kinds were tried there.
            readings = [each for each in readings if each.tool == _COMFYUI]
        self._require_kept([each for each in readings if each.tool in self._meant_for()], name)
        return name, readings

    def _meant_for(self) -> tuple[str, ...]:
        """Return the programs that a dialect is for, whose dropping a layer is an error."""
        if self.dialect == "portable":
            return _COMFYUI, _DIFFUSERS
        if self.dialect == "kohya":
            scripts = self.plain and self.family is not None and _SCRIPTS in self.family.reads["lora_unet.native"]
            return (_SCRIPTS if scripts else _COMFYUI,)
        return {"comfyui": (_COMFYUI,), "musubi": (_MUSUBI,), "diffusers": (_DIFFUSERS,), "lycoris": (_LYCORIS,)}[
            self.dialect
        ]

    def _unknown(self) -> bool:
        return self.kind is not None and self.family is None

    def _one(self, family: Family) -> str:
        """Return the layout of a dialect that has one."""
        if self.dialect != "musubi":
            return {"comfyui": "diffusion_model.native", "kohya": "lora_unet.native"}[self.dialect]
        found = _of_musubi(family)
        if found is None:
            known = ", ".join(other.classes[0] for other in families().values() if _of_musubi(other))
            raise AdapterError(f"format 'musubi' is known for {known}; this file is for {self.kind}")
        return found

    def _portable(self, family: Family, layers: Sequence[str]) -> tuple[str, list[Reading]]:
        """Return the first layout of those that are right in most programs, ComfyUI among them."""
        names = family.portable if self.plain else ("diffusion_model.native",)
        choices = [(name, fits(family, name, layers)) for name in names]
        if not self.plain:
            choices = [(name, [each for each in found if each.tool == _COMFYUI]) for name, found in choices]
        if self.leave_out:
            return choices[0]
        right = [
            (sum(not each.lost for each in found), -place, name, found)
            for place, (name, found) in enumerate(choices)
            if any(each.tool == _COMFYUI and not each.lost for each in found)
        ]
        if not right:
            self._require_kept([each for each in choices[0][1] if each.tool == _COMFYUI], choices[0][0])
        _, _, name, found = max(right)
        return name, found

    def _require_kept(self, readings: Sequence[Reading], layout: str) -> None:
        lost = [layer for each in readings for layer in each.lost]
        if lost and not self.leave_out:
            raise AdapterError(
                f"{readings[0].tool} would drop {first_few(lost)} of a file in layout `{layout}`. Leave "
                f"{'it' if len(lost) == 1 else 'them'} out with `--leave-out`, use format 'diffusers' for Diffusers, "
                "or train without in `adapter.target_modules`."
            )

    def _known_family(self) -> Family:
        if self.kind is None:
            raise AdapterError(
                f"its header does not name the network that it is for, which format {self.dialect!r} needs. Give the "
                "pipeline's folder with `--model`."
            )
        if self.family is None:
            known = ", ".join(sorted(kind for family in families().values() for kind in family.classes))
            raise AdapterError(
                f"format {self.dialect!r} needs the model's original layer names, which are known for {known}; this "
                f"file is for {self.kind}. Use format 'diffusers', or 'lycoris'."
            )
        return self.family

    def _require_names(self, family: Family) -> None:
        unknown = [piece.name for piece in self.pieces if family.place(piece.name) is None]
        if unknown:
            raise AdapterError(
                f"No original name is known for layer {first_few(unknown)} of {self.kind}. Train without it in "
                "`adapter.target_modules`, or use format 'diffusers'."
            )

    def _require_layers(self) -> None:
        """Raise `AdapterError` for a layer that the network does not have, or has with other sides."""
        if self.network is None or not self.network.shapes:
            return
        for piece in self.pieces:
            shape = self.network.shapes.get(piece.name)
            if shape is None or piece.shape != shape:
                has = "has no such layer" if shape is None else f"has one of shape {list(shape)}"
                raise AdapterError(
                    f"`{piece.name}` changes a weight of shape {list(piece.shape)}, and {self.kind or 'the model'} "
                    f"{has}. It was made for another model: give the one that it was trained on with `--model`."
                )

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
        self.pieces = found
        self.error = None if not size else math.sqrt(off / size)

    def _tensors(self, layout: FileLayout) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        if layout.names == "diffusers":
            for piece in self.pieces:
                tensors |= keys_of(piece, layout.key(_same(piece.name)), layout)
            return tensors
        places = places_of(self._known_family(), (piece.name for piece in self.pieces))
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
        rows = [parts[part].shape[0] if part in parts else self._outputs(place, part) for part in place.parts]
        try:
            return stacked(place.native, [parts.get(part) for part in place.parts], rows)
        except AdapterError as error:
            raise AdapterError(
                f"{error}. Turn it into the nearest LoRA with `--as-lora RANK`, or use format 'lycoris'."
            ) from None

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


def _of_musubi(family: Family) -> str | None:
    layouts = (name for name, tools in family.reads.items() if name.startswith("lora_unet.") and _MUSUBI in tools)
    return next(layouts, None)


def _same(layer: str) -> NativePlace:
    return NativePlace(layer=layer, native=layer, parts=(layer,), swapped=False)
