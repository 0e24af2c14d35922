"""Read and write adapter files: safetensors only, completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowhooks import files
from flowhooks.adapters.fit import number_types
from flowhooks.adapters.names import (
    ALPHA,
    CONFIG_KEY,
    DIFFUSERS_PREFIX,
    LAYERS_KEY,
    LYCORIS_PREFIX,
    METADATA_KEY,
    PEFT_PREFIX,
    TRANSFORMER_KEY,
    bare_key,
    diffusers_prefix,
    find_file,
    format_of,
    has_other_matrices,
    has_other_names,
    layer_name,
    refuse_damaged,
    refuse_foreign_magnitudes,
    refuse_integers,
    unreadable,
)
from flowhooks.adapters.native_file import in_own_names, network_named
from flowhooks.adapters.network import Network, network_of, network_told
from flowhooks.adapters.other_names import converted
from flowhooks.adapters.peft_document import check_header
from flowhooks.errors import AdapterError
from flowhooks.transfer import on_host


def read_tensors(file: Path, *, integers: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors (on the CPU) and header of a safetensors file.

    Args:
        integers: whether tensors other than plain floats are allowed, such as counters that a module keeps.

    Raises:
        AdapterError: it is damaged, or not what its checkpoint's manifest says; empty; holds NaN or infinity, or
            numbers that are no plain floats.
    """
    try:
        refuse_damaged(file)
        if not integers:
            refuse_integers(file, number_types(file))
        with safe_open(file, framework="pt", device="cpu") as handle:
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
            metadata = dict(handle.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise AdapterError(unreadable(file, error)) from error
    if not tensors:
        raise AdapterError(f"{file}: holds no tensors.")
    broken = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise AdapterError(f"{file}: `{broken[0]}` has NaN or infinite values. Use an earlier checkpoint of that run.")
    return tensors, metadata


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write a safetensors file. Tensors are copied to the CPU and made contiguous."""
    return packed_tensors(tensors, metadata)(file)


def packed_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Callable[[Path], Path]:
    """Copy tensors to the host, and return what writes the copies to a safetensors file, now or later."""
    copies, header = on_host(tensors), {"format": "pt", **metadata}
    return lambda file: write_aside(file, lambda aside: save_file(copies, aside, metadata=header))


def write_aside(file: Path, write: Callable[[Path], object]) -> Path:
    """Write as :func:`flowhooks.files.write_aside` does. Raises `AdapterError` when the disk refuses."""
    try:
        return files.write_aside(file, write)
    except (NotADirectoryError, FileExistsError):
        raise AdapterError(f"{file}: is below a file, where a folder is expected; name another place.") from None
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{file}: cannot be written ({error}). Check the free space and the folder's permissions."
        ) from error


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """Holds the content of a file.

    Args:
        path: path of the file.
        kind: format of the file: ``diffusers``, ``peft`` or ``lycoris``.
        tensors: tensors on the CPU, by their names without the format's prefix.
        header: metadata that was written beside them.
        alphas: layer -> alpha, for a LoRA that holds them as tensors.
        renamed: whether the file has the names of another program.
        network: what Diffusers calls the network, in a file of its format: ``transformer`` or ``unet``.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]
    alphas: Mapping[str, float] = field(default_factory=dict)
    renamed: bool = False
    network: str = DIFFUSERS_PREFIX


def read_adapter(path: Path | str, *, pipeline: Any = None, network: nn.Module | Network | None = None) -> AdapterFile:
    """Read the file at ``path`` (a .safetensors file or the folder with it).

    Layer names of other programs are read by the rules of ``flowhooks.naming``, which need the network's layers, and
    where these do not know them all by Diffusers' converter for the pipeline's class. Alphas are then in the matrices.

    Args:
        pipeline: the Diffusers pipeline that it is for, or its class.
        network: the network that it is for; with None it is the one that the file's header tells of, if any.

    Raises:
        AdapterError: it is damaged, pickled or of no format that is read.
    """
    file = find_file(Path(path))
    tensors, header = read_tensors(file)
    refuse_foreign_magnitudes(file, tensors)
    renamed = False
    if _has_foreign_names(tensors, network):
        if network is None:
            known = network_told(header, str(file))
        else:
            known = network if isinstance(network, Network) else network_of(network)
        if known is None and has_other_matrices(tensors):
            known = network_named(file, tensors)
        own = None if known is None else in_own_names(file, tensors, known)
        if own is None and pipeline is not None and has_other_names(tensors):
            own = converted(file, tensors, pipeline)
        if own is not None:
            tensors, renamed = own, True
            # The header describes the file's own layers and alphas, which have been converted.
            described = (CONFIG_KEY, METADATA_KEY, LAYERS_KEY)
            header = {key: value for key, value in header.items() if key not in described}
    kind, prefix = format_of(file, tensors)
    if kind == "diffusers":
        check_header(file, header)
    stripped = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    alphas = {} if kind == "lycoris" else split_alphas(file, stripped)
    network_name = prefix.removesuffix(".") if kind == "diffusers" and not renamed else None
    return AdapterFile(
        path=file,
        kind=kind,
        tensors=stripped,
        header=header,
        alphas=alphas,
        renamed=renamed,
        network=network_name or diffusers_prefix(header.get(TRANSFORMER_KEY)),
    )


def _has_foreign_names(tensors: Mapping[str, Tensor], network: nn.Module | Network | None) -> bool:
    """Return whether all layers of a file have the names of another program."""
    if has_other_names(tensors) or has_other_matrices(tensors):
        return True
    if network is None:
        return False
    names = network.shapes if isinstance(network, Network) else [name for name, _ in network.named_modules()]
    own = {*names, *(f"{LYCORIS_PREFIX}_{name}".replace(".", "_") for name in names)}
    bare = (bare_key(key).removeprefix(PEFT_PREFIX) for key in tensors)
    return not any(key.split(".")[0] in own or layer_name(key) in own for key in bare)


def split_alphas(file: Path, tensors: dict[str, Tensor]) -> dict[str, float]:
    """Remove the alphas from a LoRA's tensors and return layer -> alpha. Raises `AdapterError` for one that is not a
    number."""
    alphas: dict[str, float] = {}
    for key in [key for key in tensors if key.endswith(ALPHA)]:
        value = tensors.pop(key)
        if value.numel() != 1:
            raise AdapterError(f"{file}: `{key}` has shape {list(value.shape)}; expected one number.")
        alphas[key.removesuffix(ALPHA)] = float(value)
    return alphas
