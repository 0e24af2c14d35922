"""From a file to an attached adapter."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.peft_utils import get_peft_kwargs
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from flowhooks.adapters.base import Adapter, AttachedAdapter, check_complete
from flowhooks.adapters.files import CONFIG_KEY, PEFT_CONFIG_FILE, find_file, read_json, read_tensors
from flowhooks.adapters.fit import check_kind, check_scale
from flowhooks.adapters.lycoris_adapter import LycorisAdapter, algorithm_of, network_from_weights
from flowhooks.adapters.names import (
    ALPHA,
    DIFFUSERS_PREFIX,
    first_few,
    format_of,
    is_number,
    is_whole,
    layer_name,
    read_section,
    refuse_whole_modules,
)
from flowhooks.adapters.peft_adapter import PeftAdapter, peft_config, selected_targets
from flowhooks.adapters.targets import check_bare, find_targets
from flowhooks.errors import AdapterError, FlowhooksWarning
from flowhooks.reading import MAX_DOCUMENT, read_text

_PEFT_CONFIGS: dict[str, tuple[str, type[PeftConfig]]] = {
    "LORA": ("lora", LoraConfig),
    "LOHA": ("loha", LoHaConfig),
    "LOKR": ("lokr", LoKrConfig),
}
# What decides the rank of a layer and how strongly it acts, as PEFT's configurations call it.
_STRENGTH = ("rank_pattern", "alpha_pattern", "use_rslora")
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
        alphas: layer -> alpha, of a LoRA that holds them as tensors.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]
    alphas: Mapping[str, float] = field(default_factory=dict)


def read_adapter(path: Path | str) -> AdapterFile:
    """Read the file at ``path`` (a .safetensors file or the folder with it). Raises `AdapterError` when it is damaged,
    pickled or of no known format."""
    file = find_file(Path(path))
    tensors, header = read_tensors(file)
    kind, prefix = format_of(file, tensors)
    stripped = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    alphas = {} if kind == "lycoris" else split_alphas(file, stripped)
    return AdapterFile(path=file, kind=kind, tensors=stripped, header=header, alphas=alphas)


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


def starting_config(file: AdapterFile, section: Mapping[str, Any], targets: tuple[str, ...]) -> PeftConfig:
    """The PEFT configuration of an adapter that starts from ``file``: the section's, with the file's rank and strength
    of every layer, whether its patterns or rank-stabilised scaling say them.

    Raises:
        AdapterError: the file's type, rank or alpha is not the section's.
    """
    check_kind(file.path, file.kind, section)
    found, config = _peft_config(file), peft_config(section, targets)
    check_scale(file.path, _peft_section(file.path, {}, found), section)
    for key in _STRENGTH:
        if hasattr(config, key):
            setattr(config, key, getattr(found, key))
    return config


def load_values(adapter: AttachedAdapter, file: AdapterFile) -> None:
    """Start ``adapter`` from the values of ``file``. Raises `AdapterError` unless kind, layers, shapes and the scale of
    every layer are the same."""
    check_kind(file.path, file.kind, adapter.config)
    if isinstance(adapter, PeftAdapter):
        _check_scales(adapter, file)
    adapter.load_state_dict(file.tensors, origin=str(file.path))


def _check_scales(adapter: PeftAdapter, file: AdapterFile) -> None:
    config = _peft_config(file)
    for name, layer in zip(adapter.targets, adapter.layers, strict=True):
        found, built = scale_of(config, name), float(vars(layer)["scaling"][adapter.name])
        if not math.isclose(found, built, rel_tol=1e-6):
            raise AdapterError(
                f"{file.path}: scales the change of `{name}` by {found:g}, the adapter section by {built:g}. Set "
                "`adapter.rank` and `adapter.alpha` to the file's."
            )


def scale_of(config: Any, layer: str) -> float:
    """What PEFT multiplies the product of a layer's matrices by."""
    rank = (config.rank_pattern or {}).get(get_pattern_key(config.rank_pattern or {}, layer), config.r)
    alpha = config.lora_alpha if isinstance(config, LoraConfig) else config.alpha
    alpha = (config.alpha_pattern or {}).get(get_pattern_key(config.alpha_pattern or {}, layer), alpha)
    return float(alpha / (math.sqrt(rank) if getattr(config, "use_rslora", False) else rank))


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
    if read.alphas:
        _take_alphas(read, document, origin)
    kind_name = document.pop("peft_type", "LORA")
    if not isinstance(kind_name, str) or kind_name not in _PEFT_CONFIGS:
        raise AdapterError(f"{origin}: `peft_type` is {kind_name!r}; expected one of {', '.join(_PEFT_CONFIGS)}.")
    _check_plain(document, origin)
    _check_values(document, origin)
    config_class = _PEFT_CONFIGS[kind_name][1]
    known = {option.name for option in fields(config_class)}
    unknown = [key for key in document if key not in known]
    if unknown:
        warnings.warn(
            f"{origin}: this PEFT knows no {first_few(unknown)}; left out. A newer PEFT wrote the file: if the "
            "adapter looks wrong, update PEFT.",
            FlowhooksWarning,
            stacklevel=2,
        )
        document = {key: value for key, value in document.items() if key in known}
    try:
        return config_class(**{**document, "inference_mode": False, "base_model_name_or_path": None})
    except (TypeError, ValueError) as error:
        raise AdapterError(
            f"{origin}: PEFT does not accept this configuration ({error}). Was it written by a newer PEFT?"
        ) from error


def split_alphas(file: Path, tensors: dict[str, Tensor]) -> dict[str, float]:
    """Take the alphas out of a LoRA's tensors: layer -> alpha. Raises `AdapterError` for one that is no number."""
    alphas: dict[str, float] = {}
    for key in [key for key in tensors if key.endswith(ALPHA)]:
        value = tensors.pop(key)
        if value.numel() != 1:
            raise AdapterError(f"{file}: `{key}` has shape {list(value.shape)}; expected one number.")
        alphas[key.removesuffix(ALPHA)] = float(value)
    return alphas


def _take_alphas(read: AdapterFile, document: dict[str, Any], origin: str) -> None:
    """Put a file's alphas into its configuration. Where that says another strength, the two cannot both be right."""
    layers = dict.fromkeys(layer_name(key) for key in read.tensors)
    lost = [name for name in read.alphas if name not in layers]
    if lost:
        raise AdapterError(f"{read.path}: has an alpha, but no matrices, for {first_few(lost)}. It is incomplete.")
    if read.kind == "peft" or LORA_ADAPTER_METADATA_KEY in read.header:
        patterns, base = document.get("alpha_pattern") or {}, document.get("lora_alpha", document.get("alpha"))
        for name, alpha in read.alphas.items():
            stated = patterns.get(get_pattern_key(patterns, name), base)
            if document.get("use_rslora") or stated is None or not math.isclose(stated, alpha, rel_tol=1e-3):
                raise AdapterError(
                    f"{read.path}: `{name}{ALPHA}` is {alpha:g}, {origin} says {stated}"
                    f"{' with `use_rslora`' if document.get('use_rslora') else ''}. One of them is wrong: take the "
                    "file as its trainer wrote it."
                )
        return
    # A layer without an alpha keeps Diffusers' reading, its rank.
    ranks = {name: tensor.shape[0] for name, tensor in _downs(read.tensors)}
    alphas = {name: read.alphas.get(name, float(rank)) for name, rank in ranks.items()}
    if not alphas:
        return
    counts = Counter(alphas.values())
    common = max(counts, key=lambda alpha: (counts[alpha], alpha))
    document["lora_alpha"] = common
    # Anchored: a layer's whole name can be the end of another's.
    document["alpha_pattern"] = {f"^{re.escape(name)}": alpha for name, alpha in alphas.items() if alpha != common}


def _downs(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(layer_name(key), tensor) for key, tensor in tensors.items() if key.endswith("lora_A.weight")]


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
    refuse_whole_modules(document, origin)
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
