"""From a file to an attached adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.peft_utils import get_peft_kwargs
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from torch import Tensor, nn

from flowhooks.adapters.base import Adapter, AttachedAdapter, check_complete
from flowhooks.adapters.files import CONFIG_KEY, PEFT_CONFIG_FILE, find_file, read_json, read_tensors
from flowhooks.adapters.fit import check_kind, check_scale
from flowhooks.adapters.lycoris_adapter import LycorisAdapter, algorithm_of, network_from_weights
from flowhooks.adapters.names import (
    DIFFUSERS_PREFIX,
    first_few,
    format_of,
    is_number,
    is_whole,
    layer_name,
    read_section,
)
from flowhooks.adapters.peft_adapter import PeftAdapter, selected_targets
from flowhooks.adapters.targets import check_bare, find_targets
from flowhooks.errors import AdapterError
from flowhooks.reading import MAX_DOCUMENT, read_text

_PEFT_CONFIGS: dict[str, tuple[str, type[PeftConfig]]] = {
    "LORA": ("lora", LoraConfig),
    "LOHA": ("loha", LoHaConfig),
    "LOKR": ("lokr", LoKrConfig),
}
# Ways to start a LoRA that subtract it from the base's weights: it is no change of the base as it is published.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """A file's content.

    Args:
        path: of the file.
        kind: its format: ``diffusers``, ``peft`` or ``lycoris``.
        tensors: on the CPU, their names without the format's prefix.
        header: what was written beside them.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]


def read_adapter(path: Path | str) -> AdapterFile:
    """Read the file at ``path`` (a .safetensors file or the folder with it). Raises `AdapterError` when it is damaged,
    pickled or of no known format."""
    file = find_file(Path(path))
    tensors, header = read_tensors(file)
    kind, prefix = format_of(file, tensors)
    stripped = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return AdapterFile(path=file, kind=kind, tensors=stripped, header=header)


def load_adapter(transformer: nn.Module, path: Path | str) -> Adapter:
    """Attach the adapter saved at ``path`` (a .safetensors file or the folder with it), its base frozen.

    Reads what `Adapter.save` wrote, and files of the same formats by Diffusers, PEFT and LyCORIS.

    Raises:
        AdapterError: the file is damaged or pickled, is not one of these formats, or does not fit ``transformer``
        exactly.
    """
    check_bare(transformer)
    return attach_file(transformer, read_adapter(path))


def attach_file(transformer: nn.Module, file: AdapterFile, *, whole: bool = True) -> PeftAdapter | LycorisAdapter:
    """Attach what was read.

    Args:
        whole: whether ``transformer`` has all the layers of a model, so that the file must have all that its
            configuration selects.

    Raises:
        AdapterError: it does not fit.
    """
    origin = str(file.path)
    if file.kind == "lycoris":
        network, targets = network_from_weights(transformer, file.tensors, origin=origin)
        section = _lycoris_section(file.path, file.header, network)
        if whole and CONFIG_KEY in file.header:
            check_complete(find_targets(transformer, section["target_modules"]), targets, origin=origin)
        loaded = LycorisAdapter(transformer, section, network, targets)
        loaded.fresh = False
        return loaded
    peft = _peft_config(file)
    targets = _targets(transformer, file.tensors, origin=origin)
    with _told_by_peft(origin):
        selected = selected_targets(transformer, peft) if whole else ()
    if whole:
        check_complete(selected, targets, origin=origin)
    section = _peft_section(file.path, file.header, peft)
    with _told_by_peft(origin):
        adapter = PeftAdapter(transformer, section, peft, targets)
    try:
        adapter.load_state_dict(file.tensors, origin=origin)
    except BaseException:
        adapter.detach()
        raise
    return adapter


@contextmanager
def _told_by_peft(origin: str) -> Iterator[None]:
    """What PEFT makes of a configuration that it takes at its word, as an `AdapterError`."""
    try:
        yield
    except AdapterError:
        raise
    except Exception as error:
        # Its layers read what they are given in a hundred places, and each fails in its own way.
        raise AdapterError(
            f"{origin}: PEFT cannot use this configuration ({type(error).__name__}: {error}). Take the file as it was "
            "saved."
        ) from error


def load_values(adapter: AttachedAdapter, path: Path) -> None:
    """Start ``adapter`` from the values at ``path``. Raises `AdapterError` unless kind, layers, shapes and scale are
    the same."""
    file = read_adapter(path)
    check_kind(file.path, file.kind, adapter.config)
    if isinstance(adapter, PeftAdapter):
        check_scale(file.path, _peft_section(file.path, {}, _peft_config(file)), adapter.config)
    adapter.load_state_dict(file.tensors, origin=str(file.path))


def _targets(transformer: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> tuple[str, ...]:
    named = dict.fromkeys(layer_name(key) for key in tensors)
    present = dict(transformer.named_modules())
    unknown = [name for name in named if name not in present]
    if unknown:
        raise AdapterError(
            f"{origin}: {type(transformer).__name__} has no layer named {first_few(unknown)}. It was made for "
            "another model: use the base model it was trained on."
        )
    return tuple(name for name in present if name in named)


def _peft_config(read: AdapterFile) -> PeftConfig:
    file, tensors, header = read.path, read.tensors, read.header
    if read.kind == "peft":
        document_file = file.with_name(PEFT_CONFIG_FILE)
        if not document_file.is_file():
            raise AdapterError(f"{document_file}: missing; PEFT needs it beside {file.name} for rank and alpha.")
        try:
            text = read_text(document_file, MAX_DOCUMENT)
        except (OSError, ValueError) as error:
            raise AdapterError(f"{document_file}: cannot be read ({error}). Copy or download it again.") from error
        document = read_json(text, origin=str(document_file))
        origin = str(document_file)
    elif LORA_ADAPTER_METADATA_KEY in header:
        origin = f"{file}: header `{LORA_ADAPTER_METADATA_KEY}`"
        prefixed = read_json(header[LORA_ADAPTER_METADATA_KEY], origin=origin)
        document = {key.removeprefix(f"{DIFFUSERS_PREFIX}."): value for key, value in prefixed.items()}
    else:
        # Diffusers' own reading of a file without metadata: ranks from the shapes, alpha equal to the rank.
        origin = str(file)
        ranks = {f"^{key}": tensor.shape[1] for key, tensor in tensors.items() if ".lora_B" in key and tensor.ndim > 1}
        if not ranks:
            raise AdapterError(f"{file}: has no `lora_B` weights; expected a LoRA in the Diffusers format.")
        document = {"peft_type": "LORA", **get_peft_kwargs(ranks, None, dict(tensors))}
    kind_name = document.pop("peft_type", "LORA")
    if not isinstance(kind_name, str) or kind_name not in _PEFT_CONFIGS:
        raise AdapterError(f"{origin}: `peft_type` is {kind_name!r}; expected one of {', '.join(_PEFT_CONFIGS)}.")
    _check_plain(document, origin)
    _check_values(document, origin)
    try:
        return _PEFT_CONFIGS[kind_name][1](**{**document, "inference_mode": False, "base_model_name_or_path": None})
    except (TypeError, ValueError) as error:
        raise AdapterError(
            f"{origin}: PEFT does not accept this configuration ({error}). Was it written by a newer PEFT?"
        ) from error


def _is_scales(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(isinstance(key, str) and is_number(item) for key, item in value.items())
    )


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


# Of what PEFT takes at its word.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("r", "rank"), (lambda value: is_whole(value) and value > 0, "a whole number above 0")),
    **dict.fromkeys(("lora_alpha", "alpha"), (is_number, "a number")),
    **dict.fromkeys(
        ("lora_dropout", "rank_dropout", "module_dropout"),
        (lambda value: is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    ),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (_is_scales, "an object of numbers")),
    "target_modules": (_is_pattern, "a list of names, or a pattern"),
    "use_rslora": (lambda value: isinstance(value, bool), "true or false"),
}


def _check_values(document: Mapping[str, Any], origin: str) -> None:
    for key, (fits, expected) in _VALUES.items():
        if key in document and not fits(document[key]):
            told = repr(document[key])
            told = told if len(told) <= 60 else f"{told[:57]}..."
            raise AdapterError(f"{origin}: `{key}` is {told}, expected {expected}. Take the file as it was saved.")


def _check_plain(document: Mapping[str, Any], origin: str) -> None:
    if document.get("use_dora"):
        raise AdapterError(
            f"{origin}: is a DoRA, which scales the base's weights themselves. Only plain LoRA can be loaded."
        )
    start = document.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise AdapterError(
            f"{origin}: `init_lora_weights` is {start!r}, so it fits a changed base only. Save it as a plain LoRA with "
            "PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`."
        )


def _peft_section(file: Path, header: Mapping[str, str], peft: PeftConfig) -> dict[str, Any]:
    if CONFIG_KEY in header:
        return read_section(header[CONFIG_KEY], origin=f"{file}: header `{CONFIG_KEY}`", whole=True)
    kind = next(kind for kind, config_class in _PEFT_CONFIGS.values() if type(peft) is config_class)
    targets = peft.target_modules
    return {
        "type": kind,
        "algo": None,
        "rank": peft.r,
        "alpha": peft.lora_alpha if kind == "lora" else peft.alpha,
        "dropout": peft.lora_dropout if kind == "lora" else peft.rank_dropout,
        "target_modules": sorted(targets) if isinstance(targets, (list, set)) else None,
        "init_from": None,
    }


def _lycoris_section(file: Path, header: Mapping[str, str], network: Any) -> dict[str, Any]:
    if CONFIG_KEY in header:
        return read_section(header[CONFIG_KEY], origin=f"{file}: header `{CONFIG_KEY}`", whole=True)
    first = network.loras[0]
    return {
        "type": "lycoris",
        "algo": algorithm_of(first),
        "rank": first.lora_dim,
        "alpha": float(first.alpha),
        "dropout": 0.0,
        "target_modules": None,
        "init_from": None,
    }
