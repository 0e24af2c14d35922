"""Store weights that hooks trained beside an adapter in ``flowhooks_modules.safetensors``, which says what they belong
to.

The LoRA file beside it stays a plain one. The header holds a manifest: the network's class, the arguments of its
pipeline's calls, and each hook with modules as its block in JSON, so that :func:`flowhooks.attach` can build it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowhooks.adapters.adapter_file import packed_tensors, read_tensors
from flowhooks.adapters.base import check_fit
from flowhooks.adapters.fit import number_types
from flowhooks.adapters.names import refuse_damaged, refuse_integers
from flowhooks.errors import AdapterError, ModelError
from flowhooks.kernel.assembly import Assembly
from flowhooks.manifest import MODULES
from flowhooks.reading import parse

MANIFEST = "flowhooks.modules"
FORMAT = 1


def save_modules(folder: Path, assembly: Assembly, model: Any, header: Mapping[str, str]) -> Path | None:
    """Write what hooks trained for a :class:`flowhooks.probe.FlowModel` to use; None where there is nothing.

    Raises:
        AdapterError: the disk refuses.
        ModelError: as :func:`packed_modules`.
    """
    write = packed_modules(assembly, model, header)
    return None if write is None else write(folder)


def packed_modules(assembly: Assembly, model: Any, header: Mapping[str, str]) -> Callable[[Path], Path] | None:
    """Copy what :func:`save_modules` writes, and return what writes the copy into a folder, now or later.

    Raises:
        ModelError: a hook with modules was given as an object, so that the file could not say how to build it again.
    """
    modules = assembly.exported()
    if not modules:
        return None
    blocks = []
    for key, block in assembly.blocks.items():
        if any(name.startswith(f"{key}.") for name in modules):
            if block is None:
                raise ModelError(
                    f"the hook {key!r} was attached as an object, and {MODULES} has to say how to build it again; "
                    'attach it as a block, {"type": ..., its options}'
                )
            blocks.append(block)
    manifest = {
        "format": FORMAT,
        "network": type(model.transformer).__name__,
        "component": model.component,
        "pipeline_arguments": model.arguments,
        "size": {**model.size, "frames": model.length},
        "hooks": blocks,
    }
    if model.interval is not None:
        manifest["second_time"] = model.interval.description
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    write = packed_tensors(tensors, {**header, MANIFEST: json.dumps(manifest)})
    return lambda folder: write(folder / MODULES)


def read_manifest(file: Path) -> dict[str, Any]:
    """Return the manifest of a modules file. Raises ModelError when it is missing or was not written by flowhooks."""
    if not file.is_file():
        raise ModelError(
            f"{file}: missing, and there is no adapter beside it; this run is not finished, or it trained the whole "
            "transformer, whose pipeline is in `pipeline/` there"
        )
    try:
        refuse_damaged(file)
    except AdapterError as error:
        raise ModelError(str(error)) from error
    try:
        _, header = read_tensors(file, integers=True)
        manifest = dict(parse(header[MANIFEST]))
    except (AdapterError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{file}: is no modules file of flowhooks ({error})") from error
    if manifest.get("format") != FORMAT:
        raise ModelError(f"{file}: has format {manifest.get('format')}, this release reads {FORMAT}; update flowhooks")
    kinds: dict[str, Any] = {
        "network": str,
        "component": (str, type(None)),
        "pipeline_arguments": dict,
        "size": dict,
        "hooks": list,
    }
    wrong = [key for key, kind in kinds.items() if key not in manifest or not isinstance(manifest[key], kind)]
    if wrong:
        raise ModelError(f"{file}: is no modules file of flowhooks (`{wrong[0]}` is missing or of another kind)")
    return manifest


@torch.no_grad()
def load_modules(file: Path, assembly: Assembly, *, whole: bool = True) -> None:
    """Copy a modules file's values into the hooks' modules.

    Args:
        whole: whether every module must get its values from the file; else modules that the file lacks stay as they
            are.

    Raises:
        ModelError: it cannot be read, or a key or a shape does not fit this model.
    """
    own: dict[str, Tensor] = {}
    try:
        tensors, _ = read_tensors(file, integers=True)
        for name, module in assembly.exported().items():
            if whole or any(key.startswith(f"{name}.") for key in tensors):
                own |= {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}
        check_fit(own, tensors, kind="set of modules", origin=str(file))
        floats = [key for key, tensor in own.items() if tensor.is_floating_point()]
        refuse_integers(file, {key: type for key, type in number_types(file).items() if key in floats})
    except AdapterError as error:
        raise ModelError(str(error)) from error
    for key, tensor in own.items():
        tensor.copy_(tensors[key])
