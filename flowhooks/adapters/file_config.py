"""Read the PEFT configuration that an adapter file states in any form, and the strength of each layer."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from diffusers.utils.peft_utils import get_peft_kwargs
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from flowhooks.adapters.adapter_file import AdapterFile
from flowhooks.adapters.base import check_complete
from flowhooks.adapters.names import (
    ALPHA,
    CONFIG_KEY,
    LYCORIS_PREFIX,
    METADATA_KEY,
    PEFT_CONFIG_FILE,
    TRAINED_KEY,
    USE_DORA,
    bare_key,
    check_magnitudes,
    first_few,
    layer_name,
    named_by,
    read_json,
    read_section,
)
from flowhooks.adapters.peft_document import check_plain, check_section, check_values
from flowhooks.errors import AdapterError, FlowhooksWarning
from flowhooks.reading import MAX_DOCUMENT, read_text

_PEFT_CONFIGS: dict[str, tuple[str, type[PeftConfig]]] = {
    "LORA": ("lora", LoraConfig),
    "LOHA": ("loha", LoHaConfig),
    "LOKR": ("lokr", LoKrConfig),
}


def file_config(read: AdapterFile) -> PeftConfig:
    """Return the PEFT configuration of a file: read beside it or from its header, else derived from shapes and alphas.

    Raises:
        AdapterError: it is missing, holds values that no configuration has, or contradicts the alphas.
    """
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
    elif METADATA_KEY in header:
        origin = f"{file}: header `{METADATA_KEY}`"
        prefixed = read_json(header[METADATA_KEY], origin=origin)
        document = {bare_key(key): value for key, value in prefixed.items()}
    else:
        # Diffusers' own reading of a file without metadata: ranks from the shapes, alpha equal to the rank.
        origin = str(file)
        ranks = {f"^{key}": tensor.shape[1] for key, tensor in tensors.items() if ".lora_B" in key and tensor.ndim > 1}
        if not ranks:
            raise AdapterError(f"{file}: has no `lora_B` weights; expected a LoRA in the Diffusers format.")
        document = {"peft_type": "LORA", **get_peft_kwargs(ranks, None, dict(tensors))}
    check_values(document, origin)
    if read.kind == "peft":
        check_section(origin, document, header)
    if read.alphas:
        _take_alphas(read, document, origin)
    kind_name = document.pop("peft_type", "LORA")
    if not isinstance(kind_name, str) or kind_name not in _PEFT_CONFIGS:
        raise AdapterError(f"{origin}: `peft_type` is {kind_name!r}; expected one of {', '.join(_PEFT_CONFIGS)}.")
    check_plain(document, origin)
    if kind_name == "LORA":
        check_magnitudes(origin, document.get(USE_DORA, False), tensors)
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


def as_trained(read: AdapterFile) -> AdapterFile:
    """Return a LoRA with the strengths that it was trained with, where its file has them in the matrices."""
    if TRAINED_KEY not in read.header or METADATA_KEY not in read.header or read.kind != "diffusers":
        return read
    header = {**read.header, METADATA_KEY: read.header[TRAINED_KEY]}
    trained = replace(read, header={key: value for key, value in header.items() if key != TRAINED_KEY})
    written, own = file_config(read), file_config(trained)
    layers = dict.fromkeys(map(layer_name, read.tensors))
    if not all(scale_of(own, name) for name in layers):
        # Nothing is left to bring back.
        return read
    factors = {name: scale_of(written, name) / scale_of(own, name) for name in layers}
    scaled = {key: t * factors[layer_name(key)] if ".lora_B." in key else t for key, t in read.tensors.items()}
    return replace(trained, tensors=scaled)


def rank_of(config: Any, layer: str) -> int:
    """Return the rank that a PEFT configuration sets for a layer."""
    patterns = config.rank_pattern or {}
    return int(patterns.get(get_pattern_key(patterns, layer), config.r))


def alpha_of(config: Any, layer: str) -> float:
    """Return the alpha which, divided by the layer's rank, is PEFT's factor of the product of its matrices."""
    patterns = config.alpha_pattern or {}
    alpha = config.lora_alpha if isinstance(config, LoraConfig) else config.alpha
    alpha = float(patterns.get(get_pattern_key(patterns, layer), alpha))
    # With rank stabilisation, PEFT divides by the root of the rank.
    return alpha * math.sqrt(rank_of(config, layer)) if getattr(config, "use_rslora", False) else alpha


def scale_of(config: Any, layer: str) -> float:
    """Return PEFT's factor of the product of a layer's matrices."""
    return alpha_of(config, layer) / rank_of(config, layer)


def require_configured(read: AdapterFile, config: Any, ranks: Mapping[str, int | None], known: Collection[str]) -> None:
    """Raise `AdapterError` for a file whose matrices have another rank than its configuration says, or that lacks a
    layer which that selects.

    Args:
        config: its PEFT configuration.
        ranks: rank of each layer in the file; None where its factors do not tell.
        known: names of all layers of its network; none where they are not known.
    """
    for name, rank in ranks.items():
        if rank not in (None, said := rank_of(config, name)):
            raise AdapterError(
                f"{read.path}: `{name}` has matrices of rank {rank}, and its configuration says {said}. One of them is "
                "wrong: take the file as its trainer wrote it."
            )
    check_complete(_selected(config.target_modules, ranks, known), ranks, origin=str(read.path))


def _selected(targets: Any, found: Collection[str], known: Collection[str]) -> list[str]:
    """Return the layers that a configuration selects; none where it selects by another expression than ours."""
    if isinstance(targets, str):
        # As a saved adapter has it whose names are the ends of others.
        whole = [each.replace("\\.", ".") for each in targets.split("|")]
        return whole if all(re.fullmatch(r"[\w.]+", each) for each in whole) else []
    targets = list(targets or ())
    # Layers that the network does not have are named by whoever asks for their names.
    if known:
        if not set(known) >= set(found):
            return []
        # Files list whole names; the last part of one may be that of others.
        whole = [each for each in targets if each in known]
        ends = tuple(f".{each}" for each in targets if each not in known)
        return [*whole, *(name for name in known if name.endswith(ends))]
    return [*found, *(each for each in targets if not any(named_by(name, each) for name in found))]


def require_listed(read: AdapterFile, names: Collection[str]) -> None:
    """Raise `AdapterError` for a LyCORIS file that lacks a layer which its header lists."""
    found = {key.split(".")[0] for key in read.tensors}
    held = [name for name in names if f"{LYCORIS_PREFIX}_{name}".replace(".", "_") in found]
    check_complete(names, held, origin=str(read.path))


def _take_alphas(read: AdapterFile, document: dict[str, Any], origin: str) -> None:
    """Put a file's alphas into its configuration. If the configuration states another strength, one of the two is
    wrong."""
    layers = dict.fromkeys(layer_name(key) for key in read.tensors)
    lost = [name for name in read.alphas if name not in layers]
    if lost:
        raise AdapterError(f"{read.path}: has an alpha, but no matrices, for {first_few(lost)}. It is incomplete.")
    ranks = {name: tensor.shape[0] for name, tensor in _downs(read.tensors)}
    base = document.get("lora_alpha", document.get("alpha"))
    if base is not None and (read.kind == "peft" or METADATA_KEY in read.header):
        patterns, stabilised = document.get("alpha_pattern") or {}, document.get("use_rslora")
        for name, alpha in read.alphas.items():
            stated = patterns.get(get_pattern_key(patterns, name), base)
            if not math.isclose(stated * (math.sqrt(ranks.get(name, 1)) if stabilised else 1), alpha, rel_tol=1e-3):
                raise AdapterError(
                    f"{read.path}: `{name}{ALPHA}` is {alpha:g}, {origin} says {stated}"
                    f"{' with `use_rslora`' if stabilised else ''}. One of them is wrong: take the file as its trainer "
                    "wrote it."
                )
        return
    # Every program that writes alphas as tensors divides them by the rank.
    document["use_rslora"] = False
    # A layer without an alpha keeps Diffusers' reading, its rank.
    alphas = {name: read.alphas.get(name, float(rank)) for name, rank in ranks.items()}
    if not alphas:
        return
    counts = Counter(alphas.values())
    common = max(counts, key=lambda alpha: (counts[alpha], alpha))
    document["lora_alpha"] = common
    # Anchored: a layer's whole name can be the end of another's.
    document["alpha_pattern"] = {f"^{re.escape(name)}": alpha for name, alpha in alphas.items() if alpha != common}


def _downs(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [
        (layer_name(key), tensor) for key, tensor in tensors.items() if key.endswith("lora_A.weight") and tensor.ndim
    ]


def file_section(file: Path, header: Mapping[str, str], peft: PeftConfig) -> dict[str, Any]:
    """Return the adapter section that a file was trained with, from its header, or from its PEFT configuration. Rank
    and alpha always come from the configuration: they determine the change."""
    kind = next(kind for kind, config_class in _PEFT_CONFIGS.values() if type(peft) is config_class)
    strength = {"rank": peft.r, "alpha": peft.lora_alpha if kind == "lora" else peft.alpha}
    if kind == "lora":
        strength[USE_DORA] = peft.use_dora
    if CONFIG_KEY in header:
        section = read_section(header[CONFIG_KEY], origin=f"{file}: header `{CONFIG_KEY}`", whole=True)
        return {**section, **strength}
    targets = peft.target_modules
    return {
        "type": kind,
        "algo": None,
        **strength,
        "dropout": peft.lora_dropout if kind == "lora" else peft.rank_dropout,
        USE_DORA: kind == "lora" and peft.use_dora,
        "target_modules": sorted(targets) if isinstance(targets, (list, set)) else None,
        "init_from": None,
    }
