"""Load models of transformers that are used and never trained, from a folder or the Hub, frozen, in evaluation mode.

Code that comes with a model is never run, and only safetensors are read.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from flowhooks.documents.imports import imported
from flowhooks.errors import ModelError
from flowhooks.quiet import errors_only

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Exceptions of transformers for a file that is missing, damaged or of another kind.
REFUSALS = (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError)


#: Whether networks are to be built without weights.
_SHAPES_ONLY = ContextVar("shapes only", default=False)


@contextmanager
def shapes_only(wanted: bool = True) -> Iterator[None]:
    """Inside the block :func:`load_network` reads configurations from the disk, and no weights, which are then on the
    meta device."""
    before = _SHAPES_ONLY.set(wanted)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(before)


def load_network(cls: Any, name: str, dtype: str, option: str = "model", unused: tuple[str, ...] = ()) -> Any:
    """Load a frozen network.

    Args:
        cls: class with ``from_pretrained``.
        name: a folder or a Hub id.
        dtype: ``fp32``, ``bf16`` or ``fp16``.
        option: named in errors.
        unused: prefixes of names of weights that are not used, so that they may be missing.

    Raises:
        ModelError: it cannot be loaded, or its file lacks weights, which would then be random.
    """
    if _SHAPES_ONLY.get():
        return _outline(cls, name, dtype, option)
    try:
        # Without the report of unused weights, which belong to the other half of a model; missing weights are an error.
        with errors_only("transformers.utils.logging"):
            network, report = cls.from_pretrained(
                name, use_safetensors=True, trust_remote_code=False, dtype=DTYPES[dtype], output_loading_info=True
            )
    except REFUSALS as error:
        raise ModelError(
            f"`{option}` {name!r} cannot be loaded: {short(error)}; give a folder or a Hub id of a model for "
            f"{cls.__name__} with safetensors weights"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
    if missing:
        raise ModelError(
            f"`{option}` {name!r} lacks {len(missing)} weights of a {type(network).__name__}, such as {missing[0]!r}; "
            "they would be random; give a model that was trained for this"
        )
    return frozen(network)


def _outline(cls: Any, name: str, dtype: str, option: str) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            network = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
    except REFUSALS as error:
        raise ModelError(f"the configuration of `{option}` {name!r} is not on this disk: {short(error)}") from error
    return frozen(network.to(DTYPES[dtype]))


def frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def load_tokenizer(name: str, option: str = "model") -> Any:
    """Load a tokenizer. Raises ModelError when there is none."""
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except REFUSALS as error:
        raise ModelError(
            f"`{option}` {name!r} has no tokenizer that can be loaded: {short(error)}; give a folder or a Hub id that "
            "has one"
        ) from error


def import_network(path: str, dtype: str, option: str = "model") -> nn.Module:
    """Return what the class or function at ``package.module:name`` returns when it is called without arguments.

    Raises:
        ModelError: it cannot be imported, or returns no module.
    """
    try:
        made = imported(path, _gives_network, "subclass of torch.nn.Module, and no function in Python")()
    except (ImportError, TypeError) as error:
        raise ModelError(f"`{option}` {path!r} cannot be imported and called: {short(error)}") from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"`{option}` {path!r} gives a {type(made).__name__}, expected a torch module")
    return frozen(made.to(DTYPES[dtype]))


def _gives_network(found: Any) -> bool:
    return inspect.isfunction(found) or (inspect.isclass(found) and issubclass(found, nn.Module))


def short(error: Exception) -> str:
    """Return one line of a library's message."""
    return " ".join(str(error).split())[:300]
