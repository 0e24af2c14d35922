"""Refuse unsupported PEFT configurations, in a file beside an adapter or in its header. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowhooks.adapters.names import USE_DORA, is_number, is_whole
from flowhooks.errors import AdapterError

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
