"""Make a backend's own configuration from settings in Diffusers' words; the classes that read it check it."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers

from flowhooks.documents.suggest import hint, listed
from flowhooks.quantization.table import FILE, METHOD, WEIGHT_ONLY

_CLASSES = {
    "torchao": "TorchAoConfig",
    "bitsandbytes": "BitsAndBytesConfig",
    "quanto": "QuantoConfig",
    "gguf": "GGUFQuantizationConfig",
}
#: Arguments that say where and how a class of Diffusers or Transformers loads weights, which is decided here, or that
#: hold no fewer bits.
_DECIDED = {
    *("self", "kwargs", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight", "compute_dtype"),
    *("include_input_output_embeddings", "untie_embedding_weights"),
}
#: Arguments by which backends name layers that stay as they are.
_KEPT = ("modules_to_not_convert", "llm_int8_skip_modules")
_GRANULARITIES = ("PerRow", "PerTensor", "PerGroup")
#: Of torchao's configurations: others change settings of the whole process, or name a version of the class.
_TORCHAO = {"granularity", "weight_dtype"}


class SettingsRefused(ValueError):
    """Settings that a backend cannot use.

    Args:
        message: what is wrong, and what is allowed.
        keys: where, below the settings.
    """

    def __init__(self, message: str, *keys: str):
        super().__init__(message)
        self.keys = keys


def configuration(settings: Mapping[str, Any], library: str, dtype: torch.dtype) -> Any:
    """The configuration of Diffusers or Transformers, by the library that a component comes from.

    Args:
        dtype: of the computation, unless the settings choose another.

    Raises:
        SettingsRefused: an argument that its class does not have, or a value that it does not take.
    """
    method = settings[METHOD]
    home: Any = transformers if library == "transformers" else diffusers
    if method == "gguf" and library == "transformers":
        raise SettingsRefused("GGUF files are read for networks of Diffusers only; use another backend", METHOD)
    cls = getattr(home, _CLASSES[method])
    allowed = set(inspect.signature(cls.__init__).parameters) - _DECIDED
    if method == "quanto" and library == "transformers":
        # The same argument has two names there and in Diffusers.
        settings = {"weights" if key == "weights_dtype" else key: value for key, value in settings.items()}
    given = {key: value for key, value in settings.items() if key not in (METHOD, FILE if method == "gguf" else METHOD)}
    for key in given:
        if key.startswith(("_comment", "$comment")):
            continue
        if key not in allowed:
            known = sorted({*allowed, *({FILE} if method == "gguf" else ())})
            raise SettingsRefused(
                f"unknown argument {key!r} of {cls.__name__}{hint(key, known)}; it takes {listed(known)}", key
            )
    given = {key: value for key, value in given.items() if key in allowed}
    for key in _KEPT:
        value = given.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise SettingsRefused("expected a list of names of layers", key)
    if method == "torchao":
        given["quant_type"] = _torchao(given.get("quant_type"))
    if method == "bitsandbytes":
        given.setdefault("bnb_4bit_compute_dtype", dtype)
    if method == "gguf":
        given["compute_dtype"] = dtype
    if given.get("activations") is not None:
        raise SettingsRefused("quantised activations have no gradient; leave it out", "activations")
    try:
        with warnings.catch_warnings():
            # Diffusers announces that it will drop its own loader of quanto, which is not used here.
            warnings.simplefilter("ignore")
            made = cls(**given)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise SettingsRefused(f"{cls.__name__}: {' '.join(str(error).split())}") from error
    if method == "bitsandbytes":
        _check_bitsandbytes(made)
    return made


def kept(made: Any) -> list[str]:
    """Names that a configuration leaves as they are."""
    return [name for key in _KEPT for name in getattr(made, key, None) or ()]


def _check_bitsandbytes(made: Any) -> None:
    if not made.load_in_4bit and not made.load_in_8bit:
        raise SettingsRefused("BitsAndBytesConfig: set `load_in_4bit` or `load_in_8bit` to true")
    if made.bnb_4bit_quant_type not in ("nf4", "fp4"):
        raise SettingsRefused(f"expected 'nf4' or 'fp4', found {made.bnb_4bit_quant_type!r}", "bnb_4bit_quant_type")


def _torchao(written: Any) -> Any:
    """A configuration of torchao from its name, or from an object as torchao writes it: ``_type`` and ``_data``. Only
    classes that are named here are made."""
    import torchao.quantization as torchao

    where = ("quant_type",)
    name, data = (written, {}) if not isinstance(written, Mapping) else (written.get("_type"), written.get("_data", {}))
    if name not in WEIGHT_ONLY:
        raise SettingsRefused(f"{_unfit(name)}; expected {listed(list(WEIGHT_ONLY))}", *where)
    cls = getattr(torchao, name)
    allowed = sorted(_TORCHAO & {field.name for field in dataclasses.fields(cls)})
    if not isinstance(data, Mapping):
        raise SettingsRefused("expected an object", *where, "_data")
    made: dict[str, Any] = {}
    for key, value in data.items():
        if key not in allowed:
            raise SettingsRefused(
                f"unknown argument {key!r} of {name}{hint(key, allowed)}; it takes {listed(allowed)}",
                *where,
                "_data",
                key,
            )
        made[key] = _granularity(value) if key == "granularity" else _float8(value)
    try:
        # The recommended settings of torch's compiler are those of the whole process, matrix products of 32 bits too.
        return cls(**made, set_inductor_config=False)
    except (TypeError, ValueError, AssertionError) as error:
        raise SettingsRefused(f"{name}: {error}", *where) from error


def _unfit(name: Any) -> str:
    if not isinstance(name, str):
        return "no name of a configuration of torchao"
    if "DynamicActivation" in name or "StaticActivation" in name:
        return f"{name!r} quantises activations too, and no gradient passes through it"
    if "Int4" in name:
        return f"{name!r} needs kernels for inference, through which no gradient passes; use 'int4' or 'nf4'"
    return f"{name!r} is none of torchao's configurations that are known to pass a gradient"


def _granularity(value: Any) -> Any:
    from torchao.quantization import granularity

    where = ("quant_type", "_data", "granularity")
    name, data = (value, {}) if not isinstance(value, Mapping) else (value.get("_type"), value.get("_data", {}))
    size = data.get("group_size") if isinstance(data, Mapping) else None
    if name not in _GRANULARITIES or (name == "PerGroup") != (isinstance(size, int) and size > 0):
        grouped = '{"_type": "PerGroup", "_data": {"group_size": 64}}'
        raise SettingsRefused(f"expected 'PerRow', 'PerTensor' or {grouped}", *where)
    return getattr(granularity, name)(*(() if size is None else (size,)))


def _float8(value: Any) -> torch.dtype:
    names = ("float8_e4m3fn", "float8_e5m2")
    name = str(value).removeprefix("torch.")
    if name not in names:
        raise SettingsRefused(f"expected {listed(list(names))}, found {value!r}", "quant_type", "_data", "weight_dtype")
    return getattr(torch, name)
