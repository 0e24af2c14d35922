"""Check from the headers of both whether an adapter file can be for a model, without torch and before weights load.

This does not prove that it fits: values, and what a header does not say, are checked when the adapter is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from flowhooks.adapters.names import (
    ALPHA,
    CONFIG_KEY,
    GATE_KEY,
    LYCORIS_PREFIX,
    METADATA_KEY,
    PEFT_CONFIG_FILE,
    TRAINED_KEY,
    USE_DORA,
    bare_key,
    check_magnitudes,
    find_file,
    first_few,
    format_of,
    has_other_matrices,
    has_other_names,
    layer_name,
    read_json,
    read_section,
    refuse_damaged,
    refuse_foreign_magnitudes,
    refuse_integers,
    unreadable,
)
from flowhooks.adapters.peft_document import check_header, check_plain, check_values
from flowhooks.errors import AdapterError
from flowhooks.naming import NETWORKS
from flowhooks.reading import MAX_DOCUMENT, parse, read_text

Shapes = dict[str, tuple[int, ...]]
#: File in the outline of a pipeline with the shapes of a network, in place of its weights.
SHAPES = "flowhooks_shapes.json"

# Names of the first matrix of a layer.
_FIRSTS = (".lora_A.weight", ".lora_down.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a")

# The two matrices of a layer of a LoRA: the ranks of both are equal.
_PAIR = ("lora_A.weight", "lora_B.weight")

# Tensors with a dimension equal to one of their layer: which dimension, and what it counts.
_SIDES = (
    ("lora_A.weight", 1, "inputs"),
    ("lora_down.weight", 1, "inputs"),
    ("lora_B.weight", 0, "outputs"),
    ("lora_up.weight", 0, "outputs"),
)


def check_file(
    path: Path, model: Path | None, section: Mapping[str, Any] | None = None, *, beneath: bool = False
) -> None:
    """Check that the file at ``path`` can be loaded; else raise `AdapterError`.

    Args:
        path: a .safetensors file, or the folder with it.
        model: folder of the pipeline it is for; None where there is none on this disk.
        section: adapter section that the file is to fit, if it has one to fit.
        beneath: whether another adapter is trained on top of it.
    """
    file = find_file(path)
    try:
        refuse_damaged(file)
        shapes, metadata = _header(file)
        types = number_types(file)
    except (SafetensorError, OSError) as error:
        raise AdapterError(unreadable(file, error)) from None
    if not shapes:
        raise AdapterError(f"{file}: holds no tensors.")
    refuse_integers(file, types)
    refuse_foreign_magnitudes(file, shapes)
    foreign = has_other_names(shapes) or has_other_matrices(shapes)
    if foreign and any(key.endswith(_FIRSTS) for key in shapes):
        # The rules of names, and Diffusers' own converter, import torch.
        _check_converted(file, model, section)
        return
    kind, prefix = format_of(file, shapes)
    _check_pairs(file, shapes)
    found = _found(file, kind, shapes, metadata)
    if found.get("type") == "lora":
        check_magnitudes(str(file), found[USE_DORA], shapes)
    if beneath and found.get(USE_DORA):
        raise beneath_others(file)
    if section is not None:
        check_kind(file, kind, section)
        if {"type", "rank", "alpha"} <= found.keys():
            check_scale(file, found, section)
    weights = transformer_shapes(model) if model is not None else {}
    if weights:
        stripped = {key.removeprefix(prefix): shape for key, shape in shapes.items()}
        check_layers(file, stripped, weights, lycoris=kind == "lycoris")


def beneath_others(file: Path) -> AdapterError:
    """Return why a DoRA cannot have an adapter on top of it: it scales what the layer computes, the change of that
    adapter included."""
    return AdapterError(f"{file}: is a DoRA, which cannot be on beneath other adapters. Give a LoRA, LoHa or LoKr.")


def adapter_below(path: Path) -> float | None:
    """Return the sigma above which an adapter was off in training, as its file says; None if it never was.

    Raises:
        AdapterError: the file is missing or cannot be read.
    """
    file = find_file(path)
    try:
        noted = _header(file)[1].get(GATE_KEY)
        return None if noted is None else float(noted)
    except (SafetensorError, OSError) as error:
        raise AdapterError(unreadable(file, error)) from None
    except ValueError:
        raise AdapterError(f"{file}: header `{GATE_KEY}`: {noted!r} is no number.") from None


def check_scale(file: Path, found: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Check that a file's type, rank and alpha are those of a section, and that both are a DoRA or neither; else raise
    `AdapterError`."""
    if any(found[key] != section[key] for key in ("type", "rank", "alpha")):
        raise AdapterError(
            f"{file}: holds type {found['type']}, rank {found['rank']}, alpha {found['alpha']:g}; the adapter "
            f"section says type {section['type']}, rank {section['rank']}, alpha {section['alpha']:g}. Set the "
            "section to the file's values."
        )
    if found[USE_DORA] != section.get(USE_DORA, False):
        holds, says = ("a DoRA", "one without magnitudes")[:: 1 if found[USE_DORA] else -1]
        raise AdapterError(
            f"{file}: holds {holds}, the adapter section asks for {says}. Set `adapter.use_dora` to "
            f"{str(found[USE_DORA]).lower()}."
        )


def check_kind(file: Path, kind: str, section: Mapping[str, Any]) -> None:
    """Raise `AdapterError` for a LyCORIS file and a PEFT section, or the other way round."""
    if (kind == "lycoris") != (section["type"] == "lycoris"):
        raise AdapterError(
            f"{file}: holds a {kind} adapter, but `adapter.type` is {section['type']!r}. Set it to the file's type."
        )


def _found(file: Path, kind: str, shapes: Shapes, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return type, rank and alpha from an adapter's configuration, without reading tensors.

    Raises:
        AdapterError: the configuration cannot be loaded.
    """
    if kind == "lycoris":
        return {}
    beside = file.with_name(PEFT_CONFIG_FILE)
    if kind == "peft" and beside.is_file():
        try:
            text = read_text(beside, MAX_DOCUMENT)
        except (OSError, ValueError) as error:
            raise AdapterError(f"{beside}: cannot be read ({error}). Copy or download it again.") from error
        return _stated(read_json(text, origin=str(beside)), str(beside))
    if kind == "diffusers" and METADATA_KEY in metadata:
        check_header(file, metadata)
        origin = f"{file}: header `{METADATA_KEY}`"
        # A run starts from such a file with the strength that it was trained with.
        document = read_json(metadata.get(TRAINED_KEY, metadata[METADATA_KEY]), origin=origin)
        return _stated({bare_key(key): value for key, value in document.items()}, origin)
    if CONFIG_KEY in metadata and not any(key.endswith(ALPHA) for key in shapes):
        return read_section(metadata[CONFIG_KEY], origin=f"{file}: header `{CONFIG_KEY}`")
    return {}


def _stated(document: Mapping[str, Any], origin: str) -> dict[str, Any]:
    check_values(document, origin)
    check_plain(document, origin)
    found = {
        "type": str(document.get("peft_type", "LORA")).lower(),
        "rank": document.get("r"),
        "alpha": document.get("lora_alpha", document.get("alpha")),
        USE_DORA: document.get(USE_DORA, False),
    }
    return {key: value for key, value in found.items() if value is not None}


def check_layers(file: Path, shapes: Shapes, weights: Shapes, *, lycoris: bool) -> None:
    """Raise `AdapterError` for a layer that the model lacks, or has with other dimensions."""
    layers = {key.removesuffix(".weight"): shape for key, shape in weights.items() if key.endswith(".weight")}
    if lycoris:
        layers = {f"{LYCORIS_PREFIX}_{name}".replace(".", "_"): shape for name, shape in layers.items()}
    named = {key: key.split(".")[0] if lycoris else layer_name(key) for key in shapes}
    unknown = [name for name in dict.fromkeys(named.values()) if name not in layers]
    if unknown:
        raise AdapterError(
            f"{file}: the model has no layer named {first_few(unknown)}. It was made for another model: use the base "
            "model it was trained on."
        )
    wrong = [
        f"`{name}` has {layers[name][side]} {what}, the file is for {shapes[key][side]}"
        for key, name in named.items()
        for part, side, what in _SIDES
        if key.endswith(part) and len(shapes[key]) > 1 and shapes[key][side] != layers[name][side]
    ]
    if wrong:
        raise AdapterError(
            f"{file}: does not fit the model; {first_few(wrong, quote=False)}. It was made for another model: use the "
            "base model it was trained on."
        )


def _check_pairs(file: Path, shapes: Shapes) -> None:
    """Raise `AdapterError` for a layer of a LoRA that lacks one of its two matrices, or whose two have other ranks."""
    for key in shapes:
        mine, other = next((pair for pair in (_PAIR, _PAIR[::-1]) if key.endswith(pair[0])), ("", ""))
        twin = f"{key.removesuffix(mine)}{other}"
        if twin not in shapes:
            raise AdapterError(f"{file}: has `{key}` and no `{twin}`. It is incomplete: copy or download it again.")
        if mine == _PAIR[0] and shapes[key][:1] != shapes[twin][1:2]:
            raise AdapterError(
                f"{file}: `{key}` has shape {list(shapes[key])} and `{twin}` {list(shapes[twin])}, of different ranks. "
                "The file is damaged: copy or download it again."
            )


def transformer_shapes(pipeline: Path, component: str | None = None) -> Shapes:
    """Return shapes of a network's weights, by default of the first network in the folder; none where they cannot be
    read, which loading them reports better."""
    component = component or first_network(pipeline)
    shapes: Shapes = {}
    if (pipeline / component / SHAPES).is_file():
        return {key: tuple(sides) for key, sides in parse(read_text(pipeline / component / SHAPES)).items()}
    try:
        for file in sorted((pipeline / component).glob("*.safetensors")):
            shapes.update(_header(file)[0])
    except (SafetensorError, OSError):
        return {}
    return shapes


def first_network(pipeline: Path) -> str:
    """Return the name of the first network that has a folder in a pipeline's."""
    return next((name for name in NETWORKS if (pipeline / name).is_dir()), NETWORKS[0])


def number_types(file: Path) -> dict[str, str]:
    """Return key -> number type of a safetensors file's tensors, from its header. Raises SafetensorError, OSError."""
    with safe_open(file, framework="numpy") as handle:
        return {key: handle.get_slice(key).get_dtype() for key in handle.keys()}  # noqa: SIM118 (not a dict)


def _header(file: Path) -> tuple[Shapes, dict[str, str]]:
    with safe_open(file, framework="numpy") as handle:
        shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118 (not a dict)
        return shapes, dict(handle.metadata() or {})


def _check_converted(file: Path, model: Path | None, section: Mapping[str, Any] | None) -> None:
    """Raise `AdapterError` when a file with the layer names of another program cannot be loaded. If the
    pipeline is not known, only the file's kind is checked.

    Args:
        file: an adapter in safetensors.
        model: folder of the pipeline it is for; None where there is none on this disk.
        section: adapter section that the file is to fit, if it has one to fit.
    """
    if section is not None:
        plain = not any(".hada_" in key or ".lokr_" in key for key in number_types(file))
        check_kind(file, "diffusers" if plain else "lycoris", section)
    if model is None:
        return
    # They import torch, which `check` does without where it can.
    from flowhooks.adapters.adapter_file import read_adapter
    from flowhooks.adapters.file_config import file_config, file_section
    from flowhooks.adapters.network import Network, network_in

    pipeline, weights = _pipeline_class(model), transformer_shapes(model)
    network = network_in(model) if weights else Network(kind=None, shapes={})
    if pipeline is None and not weights:
        return
    found = read_adapter(file, pipeline=pipeline, network=network)
    if found.kind == "lycoris":
        return
    config = file_config(found)
    if section is not None:
        check_scale(file, file_section(file, {}, config), section)
    if weights:
        check_layers(file, {key: tuple(tensor.shape) for key, tensor in found.tensors.items()}, weights, lycoris=False)


def _pipeline_class(model: Path) -> type | None:
    """Return the class of Diffusers that the index of a pipeline's folder names, if it names one."""
    import diffusers

    index = model / "model_index.json"
    try:
        name = read_json(read_text(index, MAX_DOCUMENT), origin=str(index)).get("_class_name")
    except (OSError, ValueError, AdapterError):
        return None
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline) else None
