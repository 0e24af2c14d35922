"""Find adapter files and name their keys. Free of torch, so that `flowhooks check` can use it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from flowhooks.errors import AdapterError
from flowhooks.manifest import PIPELINE, RUN, checkpoints_in, damage
from flowhooks.reading import parse, user_path

LORA_FILE = "pytorch_lora_weights.safetensors"
LYCORIS_FILE = "pytorch_lycoris_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
PEFT_CONFIG_FILE = "adapter_config.json"
#: Name of the file that an adapter is saved as, by kind.
ADAPTER_FILES = (LORA_FILE, LYCORIS_FILE, PEFT_FILE)

#: Header key under which Diffusers keeps the PEFT configuration of a LoRA; its own constant would import torch.
METADATA_KEY = "lora_adapter_metadata"

# Header keys of ours, beside the library's own.
CONFIG_KEY = "flowhooks.adapter"
TRANSFORMER_KEY = "flowhooks.transformer"
# The configuration of the network that a file is for, in Diffusers' names.
NETWORK_KEY = "flowhooks.network"
# The PEFT configuration that a LoRA was trained with, where its strength is multiplied into its matrices.
TRAINED_KEY = "flowhooks.trained"
# Layer names with their weights' shapes, for files whose keys and tensors do not show them.
LAYERS_KEY = "flowhooks.layers"
# The adapters that a file was merged from.
MERGE_KEY = "flowhooks.merge"
# The sigma above which the adapter was off in training.
GATE_KEY = "flowhooks.adapter_below"

# Prefix of every key of a file: Diffusers' name of the network, PEFT's wrapper, LyCORIS' own.
DIFFUSERS_PREFIX, DIFFUSERS_UNET = "transformer", "unet"
_DIFFUSERS = (f"{DIFFUSERS_PREFIX}.", f"{DIFFUSERS_UNET}.")
PEFT_PREFIX = "base_model.model."
LYCORIS_PREFIX = "lycoris"

# Prefixes of the keys of other programs' files, for messages.
_PROGRAMS = {
    "lora_unet_": "kohya's scripts",
    "lora_transformer_": "kohya's scripts",
    "lora_te": "kohya's scripts",
    "diffusion_model.": "ComfyUI",
    "text_encoders.": "ComfyUI",
}

#: Suffix of the key of a layer's alpha, in files that hold it as a tensor.
ALPHA = ".alpha"
#: PEFT's and Diffusers' name of the magnitudes of a DoRA layer; LyCORIS, kohya's scripts and ComfyUI say `dora_scale`.
MAGNITUDE = "lora_magnitude_vector"
DORA_SCALE = "dora_scale"
#: Key of an adapter section that says whether a LoRA is a DoRA; sections of older versions lack it.
USE_DORA = "use_dora"

#: Types of PEFT's adapters that form a change of the weight's own shape.
NEED_SHAPE = ("loha", "lokr")
#: safetensors' names of the number types that weights of an adapter have.
FLOATS = ("F64", "F32", "F16", "BF16")

# Names of the attention layers of Diffusers' models.
PROJECTIONS = (
    "to_q",
    "to_k",
    "to_v",
    "to_qkv",
    "to_out",
    "to_out.0",
    "to_add_out",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
)

#: What the name of a file ends with: letters; a folder's may end with a version's number.
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,11}")
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def diffusers_prefix(kind: str | None) -> str:
    """Return what Diffusers calls a network of a class in LoRA files, by the name of the class."""
    return DIFFUSERS_UNET if kind is not None and "UNet" in kind else DIFFUSERS_PREFIX


def bare_key(key: str) -> str:
    """Return a key without Diffusers' name of the network."""
    return next((key.removeprefix(each) for each in _DIFFUSERS if key.startswith(each)), key)


def find_file(path: Path) -> Path:
    """Return the adapter file at ``path``, which is that file or a folder with one. Raises `AdapterError` otherwise."""
    path = user_path(path)
    if path.suffix.lower() in _PICKLES:
        raise AdapterError(
            f"{path}: pickled weights are refused, they can run code when opened. Convert the file to .safetensors "
            "first."
        )
    if path.is_file():
        if path.suffix != ".safetensors":
            raise AdapterError(f"{path}: expected a .safetensors file.")
        return path
    if not path.is_dir():
        raise AdapterError(
            f"{path}: no such file or folder. Give a folder that an adapter was saved in, or its .safetensors file."
        )
    found = [path / name for name in ADAPTER_FILES if (path / name).is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise AdapterError(
            f"{path}: holds {' and '.join(file.name for file in found)}. Give the path of the one to load."
        )
    if (path / RUN).is_file():
        raise AdapterError(no_weights(path))
    if (path / "model_index.json").is_file():
        raise AdapterError(f"{path}: is a pipeline, not an adapter. Give a folder that an adapter was saved in.")
    present = sorted(entry.name for entry in path.iterdir() if entry.suffix in _PICKLES | {".safetensors"})
    raise AdapterError(
        f"{path}: holds none of {LORA_FILE}, {LYCORIS_FILE}, {PEFT_FILE}"
        + (f"; it has {', '.join(present[:5])}. Give the path of a .safetensors file." if present else ".")
    )


def refuse_other_file(folder: Path, *, files: bool = True) -> None:
    """Raise `AdapterError` for a folder to write that has the name of a file of another kind, and does not exist.

    Args:
        files: whether a .safetensors file could be written in its place.
    """
    if folder.is_dir() or not _ENDING.fullmatch(folder.suffix):
        return
    instead = "end it with .safetensors, or name a folder" if files else "name a folder"
    raise AdapterError(
        f"{folder}: ends like a file, and a folder would be made of it; {instead}. A folder of this name must exist."
    )


def no_weights(run: Path) -> str:
    """Return the message for the folder of a run that holds no adapter: why, and what to give in its place."""
    if (run / PIPELINE).is_dir():
        return f"{run}: its run trained the whole network, so there is no adapter; `{PIPELINE}` in it is what you want."
    held = [each for each in checkpoints_in(run) if any((each / name).is_file() for name in ADAPTER_FILES)]
    instead = f", or give its checkpoint {held[-1]}" if held else ""
    return f"{run}: this run has written no weights yet; finish it with `flowhooks train ... --resume latest`{instead}."


def refuse_damaged(file: Path) -> None:
    """Raise `AdapterError` for a file of a checkpoint that has changed since it was written; OSError where it cannot be
    read."""
    if (fault := damage(file)) is not None:
        raise AdapterError(fault)


def short_name(file: Path) -> str:
    """Return the name of an adapter in messages: its file's, or its folder's if the file has the usual name."""
    return file.absolute().parent.name if file.name in ADAPTER_FILES else file.stem


def read_json(text: str, *, origin: str) -> dict[str, Any]:
    """Parse a JSON object. Raises `AdapterError` naming ``origin``."""
    try:
        value = parse(text)
    except ValueError as error:
        raise AdapterError(f"{origin}: not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{origin}: expected a JSON object, found {type(value).__name__}.")
    return value


def read_section(text: str, *, origin: str, whole: bool = False) -> dict[str, Any]:
    """Parse an adapter section from a file's header.

    Args:
        whole: whether every key must be present.

    Raises:
        AdapterError: a value is one that no section has, or a key is missing; the message names ``origin``.
    """
    section = {USE_DORA: False, **read_json(text, origin=origin)}
    missing = [key for key in _SECTION if whole and key not in section]
    if missing:
        raise AdapterError(f"{origin}: has no {first_few(missing)}. Take the file as it was saved.")
    for key, (fits, expected) in _SECTION.items():
        if key in section and not fits(section[key]):
            raise AdapterError(
                f"{origin}: `{key}` is {_shown(section[key])}, expected {expected}. The file is damaged."
            )
    return section


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


_SECTION: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (lambda value: isinstance(value, str), "a string"),
    "algo": (lambda value: value is None or isinstance(value, str), "a string or null"),
    "rank": (lambda value: is_whole(value) and value > 0, "a whole number above 0"),
    "alpha": (is_number, "a number"),
    "dropout": (lambda value: is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    "target_modules": (_is_names, "a list of names or null"),
    USE_DORA: (lambda value: isinstance(value, bool), "true or false"),
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_magnitudes(origin: str, stated: bool, keys: Iterable[str]) -> None:
    """Raise `AdapterError` for a file that says that it is a DoRA and has no magnitudes, or the other way round."""
    if stated != any(key.endswith(MAGNITUDE) for key in keys):
        raise AdapterError(
            f"{origin}: `{USE_DORA}` is {str(stated).lower()}, and the file has {'no' if stated else 'a'} "
            f"`{MAGNITUDE}`, the magnitudes of a DoRA. One of them is wrong: take the file as its trainer wrote it."
        )


def refuse_foreign_magnitudes(file: Path, keys: Iterable[str]) -> None:
    """Raise `AdapterError` for a DoRA under the names of another program than PEFT and Diffusers."""
    found = [key for key in keys if key.endswith(f".{DORA_SCALE}")]
    if found:
        raise AdapterError(
            f"{file}: `{found[0]}` makes it a DoRA of LyCORIS' kind, with weight decomposition, and programs that "
            "write such files do not agree on which norms belong to it. Take it in the format of Diffusers or PEFT, or "
            "merge it into its base with the program that wrote it."
        )


def unreadable(file: Path, error: Exception) -> str:
    """Return the message for a file that is not a complete safetensors file."""
    return (
        f"{file}: cannot be read as safetensors ({error}). It is damaged or was cut short: copy or download it again."
    )


def refuse_integers(file: Path, types: Mapping[str, str]) -> None:
    """Raise `AdapterError` for a file whose tensors are not plain floats: numbers of a quantised file, read as floats,
    are not the weights it was made from.

    Args:
        types: key -> number type, as safetensors names it. An integer is allowed for a layer's alpha.
    """
    other = [
        key
        for key, type in types.items()
        if type not in FLOATS and not (key.endswith(".alpha") and type.startswith(("I", "U")))
    ]
    if other:
        raise AdapterError(
            f"{file}: {first_few(other, 1)} is stored as {types[other[0]]}; expected {', '.join(FLOATS)}. A quantised "
            "or converted file does not hold the trained weights: use the one it was made from, or save it in bf16."
        )


def format_of(file: Path, keys: Collection[str]) -> tuple[str, str]:
    """Return the format of a file, found by its keys, and the prefix to remove from them. Raises `AdapterError` for any
    other."""
    formats = {
        f"{LYCORIS_PREFIX}_": "lycoris",
        **dict.fromkeys(_DIFFUSERS, "diffusers"),
        PEFT_PREFIX: "peft",
    }
    for prefix, kind in formats.items():
        if any(key.startswith(prefix) for key in keys):
            foreign = [key for key in keys if not key.startswith(prefix)]
            if foreign:
                network = prefix.removesuffix(".") if kind == "diffusers" else DIFFUSERS_PREFIX
                raise AdapterError(
                    f"{file}: beside the {network}'s it has {first_few(foreign)}. Only adapters of the {network} "
                    "can be loaded."
                )
            return kind, "" if kind == "lycoris" else prefix
    raise AdapterError(
        f"{other_names(file, keys)}; expected `{DIFFUSERS_PREFIX}.` or `{DIFFUSERS_UNET}.` (Diffusers), "
        f"`{PEFT_PREFIX}` (PEFT) or `{LYCORIS_PREFIX}_` (LyCORIS). Other names are read where "
        "the pipeline is known: by `init_from`, teachers, anchors and `sample --lora`; `export` and `merge` take "
        "its folder with `--model`, and in Python `load_adapter(..., pipeline=pipe)`. Where it is "
        "known already, convert the file to the Diffusers format first."
    )


def has_other_names(keys: Collection[str]) -> bool:
    """Return whether the keys have none of the formats that are read directly."""
    known = (f"{LYCORIS_PREFIX}_", *_DIFFUSERS, PEFT_PREFIX)
    return not any(key.startswith(known) for key in keys)


def has_other_matrices(keys: Collection[str]) -> bool:
    """Return whether the keys are Diffusers' names of layers with other programs' names of the matrices."""
    return any(key.startswith(_DIFFUSERS) and ".lora_down." in key for key in keys)


def other_names(file: Path, keys: Collection[str]) -> str:
    """Return the beginning of a sentence on a file for which `has_other_names` is true: what it is."""
    first = next(iter(keys))
    program = next((name for start, name in _PROGRAMS.items() if first.startswith(start)), None)
    what = f"has the layer names of {program}" if program else "has layer names of no known format"
    return f"{file}: {what} ({first_few(list(keys), 1)})"


def named_by(name: str, entry: str) -> bool:
    """Return whether an entry of ``target_modules`` names a layer, as PEFT defines it: by its whole name, or by its
    last parts."""
    return name == entry or name.endswith(f".{entry}")


def layer_name(key: str) -> str:
    """Return the layer that a key of a Diffusers or PEFT file, without its prefix, belongs to."""
    for part in (".lora_", ".hada_", ".lokr_"):
        if part in key:
            return key.rsplit(part, 1)[0]
    return key.removesuffix(ALPHA)


def lycoris_names(file: Path, found: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return LyCORIS' name of each layer in ``names`` -> the layer's name.

    Raises:
        AdapterError: ``found`` has a name that is of none of them.
    """
    known = {f"{LYCORIS_PREFIX}_{name}".replace(".", "_"): name for name in names}
    unknown = [name for name in found if name not in known]
    if unknown:
        raise AdapterError(
            f"{file}: no layer is known for {first_few(unknown)}; the keys of LyCORIS lose the dots of a name. Give "
            "the pipeline's folder with `--model`."
        )
    return known


def first_few(names: list[str], count: int = 3, *, quote: bool = True) -> str:
    """Return the first ``count`` names and how many more there are."""
    shown = ", ".join(f"`{name}`" if quote else name for name in names[:count])
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")


def digest_of(file: Path) -> str:
    """Return the SHA-256 of an adapter's bytes: its file's, and its configuration's where that is a file beside it."""
    beside = file.with_name(PEFT_CONFIG_FILE)
    content = hashlib.sha256()
    for part in (file, beside) if file.name == PEFT_FILE and beside.is_file() else (file,):
        with part.open("rb") as handle:
            while block := handle.read(1 << 20):
                content.update(block)
    return content.hexdigest()
