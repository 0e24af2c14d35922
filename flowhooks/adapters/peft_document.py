"""Refuse unsupported PEFT configurations, in a file beside an adapter or in its header. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowhooks.adapters.names import (
    CONFIG_KEY,
    DIFFUSERS_PREFIX,
    METADATA_KEY,
    TRAINED_KEY,
    USE_DORA,
    is_number,
    is_whole,
    read_json,
)
from flowhooks.errors import AdapterError

# Named first where they differ: others follow from them.
_FIRST = ("r", "rank")
# Initialisations that subtract the LoRA from the base's weights: it is then not a change of the published base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _is_scales(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(isinstance(key, str) and is_number(item) for key, item in value.items())
    )


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


# Checks of values that PEFT does not validate.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("r", "rank"), (lambda value: is_whole(value) and value > 0, "a whole number above 0")),
    **dict.fromkeys(("lora_alpha", "alpha"), (is_number, "a number")),
    **dict.fromkeys(
        ("lora_dropout", "rank_dropout", "module_dropout"),
        (lambda value: is_number(value) and 0 <= value < 1, "a number from 0 to below 1"),
    ),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (_is_scales, "an object of numbers")),
    "target_modules": (_is_pattern, "a list of names, or a pattern"),
    **dict.fromkeys(("use_rslora", USE_DORA), (lambda value: isinstance(value, bool), "true or false")),
}


def check_values(document: Mapping[str, Any], origin: str) -> None:
    """Raise `AdapterError` for a value that no configuration has and PEFT would not refuse."""
    for key, (fits, expected) in _VALUES.items():
        if key in document and not fits(document[key]):
            told = repr(document[key])
            told = told if len(told) <= 60 else f"{told[:57]}..."
            raise AdapterError(f"{origin}: `{key}` is {told}, expected {expected}. Take the file as it was saved.")


def check_header(file: Path, header: Mapping[str, str]) -> None:
    """Raise `AdapterError` for a LoRA of ours whose header says in one place what it contradicts in another: somebody
    edited one of them, and nothing shows which."""
    if METADATA_KEY not in header:
        return
    written, trained = (_told(file, header, key) for key in (METADATA_KEY, TRAINED_KEY))
    if trained is not None:
        # The strength is in the matrices of such a file.
        ranks = {key: trained.get(name) for key, name in (("lora_alpha", "r"), ("alpha_pattern", "rank_pattern"))}
        expected = {**trained, **ranks, "use_rslora": False}
        _require_equal(f"{file}: header `{METADATA_KEY}`", written, expected, TRAINED_KEY)
    place = METADATA_KEY if trained is None else TRAINED_KEY
    check_section(f"{file}: header `{place}`", trained or written, header)


def check_section(origin: str, document: Mapping[str, Any], header: Mapping[str, str]) -> None:
    """Raise `AdapterError` where the section in a file's header has another rank, alpha or kind than its PEFT
    configuration.

    Args:
        origin: where the configuration is, for messages.
    """
    section = _told(Path(), header, CONFIG_KEY)
    if section is None:
        return
    names = {"rank": ("r",), "alpha": ("lora_alpha", "alpha"), USE_DORA: (USE_DORA,)}
    found = {key: document[name] for key, options in names.items() for name in options if name in document}
    _require_equal(origin, {k: v for k, v in found.items() if k in section}, section, CONFIG_KEY)


def _told(file: Path, header: Mapping[str, str], key: str) -> Any:
    if key not in header:
        return None
    document = read_json(header[key], origin=f"{file}: header `{key}`")
    return {name.removeprefix(f"{DIFFUSERS_PREFIX}."): value for name, value in document.items()}


def _require_equal(origin: str, found: Mapping[str, Any], other: Mapping[str, Any], key: str) -> None:
    for name in sorted(found.keys() & other.keys(), key=lambda each: (each not in _FIRST, each)):
        if found[name] != other[name]:
            raise AdapterError(
                f"{origin}: `{name}` is {found[name]!r}, and {other[name]!r} by the file's header `{key}`. One of them "
                "was edited: take the file as its trainer wrote it."
            )


def check_plain(document: Mapping[str, Any], origin: str) -> None:
    """Raise `AdapterError` for an adapter that changes more than it adds to its layers."""
    _refuse_whole_modules(document, origin)
    start = document.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise AdapterError(
            f"{origin}: `init_lora_weights` is {start!r}, so it fits a changed base only. Save it as a plain LoRA with "
            "PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`."
        )


def _refuse_whole_modules(document: Mapping[str, Any], origin: str) -> None:
    """Raise `AdapterError` for a PEFT configuration with ``modules_to_save``."""
    whole = document.get("modules_to_save")
    if whole:
        raise AdapterError(
            f"{origin}: `modules_to_save` is {whole!r}: beside the adapter the file replaces whole layers of the base, "
            "which flowhooks neither trains nor loads. Train without it, or merge the adapter into the base with "
            "PEFT's `merge_and_unload` and use the result as the base model."
        )
