"""From a file to an attached adapter."""

from __future__ import annotations

from collections.abc import Mapping
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
from flowhooks.adapters.names import DIFFUSERS_PREFIX, first_few, format_of, layer_name
from flowhooks.adapters.peft_adapter import PeftAdapter, selected_targets
from flowhooks.adapters.targets import check_bare, find_targets
from flowhooks.errors import AdapterError

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
    if whole:
        check_complete(selected_targets(transformer, peft), targets, origin=origin)
    adapter = PeftAdapter(transformer, _peft_section(file.path, file.header, peft), peft, targets)
    try:
        adapter.load_state_dict(file.tensors, origin=origin)
    except BaseException:
        adapter.detach()
        raise
    return adapter


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
        document = read_json(document_file.read_text(encoding="utf-8"), origin=str(document_file))
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
    if kind_name not in _PEFT_CONFIGS:
        raise AdapterError(f"{origin}: `peft_type` is {kind_name!r}; expected one of {', '.join(_PEFT_CONFIGS)}.")
    _check_plain(document, origin)
    try:
        return _PEFT_CONFIGS[kind_name][1](**{**document, "inference_mode": False, "base_model_name_or_path": None})
    except (TypeError, ValueError) as error:
        raise AdapterError(
            f"{origin}: PEFT does not accept this configuration ({error}). Was it written by a newer PEFT?"
        ) from error


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
        return read_json(header[CONFIG_KEY], origin=f"{file}: header `{CONFIG_KEY}`")
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
        return read_json(header[CONFIG_KEY], origin=f"{file}: header `{CONFIG_KEY}`")
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
