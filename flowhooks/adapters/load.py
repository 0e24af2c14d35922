"""Attach an adapter from a file, or from an adapter section."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig
from torch import Tensor, nn

from flowhooks.adapters.adapter_file import AdapterFile, read_adapter
from flowhooks.adapters.base import Adapter, AttachedAdapter, check_complete
from flowhooks.adapters.dora import require_rows
from flowhooks.adapters.file_config import as_trained, file_config, file_section, scale_of
from flowhooks.adapters.fit import check_kind, check_scale
from flowhooks.adapters.lycoris_adapter import LycorisAdapter, algorithm_of, build_network, network_from_weights
from flowhooks.adapters.names import CONFIG_KEY, USE_DORA, first_few, layer_name, read_section
from flowhooks.adapters.peft_adapter import PeftAdapter, peft_config, selected_targets
from flowhooks.adapters.targets import check_bare, find_targets
from flowhooks.errors import AdapterError

# Keys of PEFT's configurations that determine rank and strength of a layer.
_STRENGTH = ("rank_pattern", "alpha_pattern", "use_rslora")


def load_adapter(transformer: nn.Module, path: Path | str, *, pipeline: Any = None) -> Adapter:
    """Attach the adapter saved at ``path`` (a .safetensors file or the folder with it), its base frozen.

    Reads what `Adapter.save` wrote, and files of the same formats by Diffusers, PEFT and LyCORIS.

    Args:
        pipeline: the Diffusers pipeline of ``transformer``, or its class: a LoRA with layer names of other programs
            that flowhooks does not know is then read where Diffusers reads it for that class.

    Raises:
        AdapterError: the file is damaged or pickled, is not one of these formats, or does not fit ``transformer``
        exactly.
    """
    check_bare(transformer)
    return attach_file(transformer, as_trained(read_adapter(path, pipeline=pipeline, network=transformer)))


def attach_file(transformer: nn.Module, file: AdapterFile, *, whole: bool = True) -> PeftAdapter | LycorisAdapter:
    """Attach an adapter file that was read.

    Args:
        whole: whether ``transformer`` has all the layers of a model, so that the file must have all that its
            configuration selects.

    Raises:
        AdapterError: the file does not fit.
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
    peft = file_config(file)
    targets = _targets(transformer, file.tensors, origin=origin)
    with _told_by_peft(origin):
        selected = selected_targets(transformer, peft) if whole else ()
    if whole:
        check_complete(selected, targets, origin=origin)
    section = file_section(file.path, file.header, peft)
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
    """Raise as `AdapterError` what PEFT raises on a configuration that it does not validate."""
    try:
        yield
    except AdapterError:
        raise
    except Exception as error:
        # Its layers read the values in many places, and each fails in its own way.
        raise AdapterError(
            f"{origin}: PEFT cannot use this configuration ({type(error).__name__}: {error}). Take the file as it was "
            "saved."
        ) from error


def starting_config(file: AdapterFile, section: Mapping[str, Any], targets: tuple[str, ...]) -> PeftConfig:
    """Return the PEFT configuration of an adapter that starts from ``file``: the section's, with the file's rank and
    strength of every layer, whether its patterns or rank-stabilised scaling state them.

    Raises:
        AdapterError: the file's type, rank or alpha is not the section's.
    """
    check_kind(file.path, file.kind, section)
    found, config = file_config(file), peft_config(section, targets)
    check_scale(file.path, file_section(file.path, {}, found), section)
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
    config = file_config(file)
    for name, layer in zip(adapter.targets, adapter.layers, strict=True):
        found, built = scale_of(config, name), float(vars(layer)["scaling"][adapter.name])
        if not math.isclose(found, built, rel_tol=1e-6):
            raise AdapterError(
                f"{file.path}: scales the change of `{name}` by {found:g}, the adapter section by {built:g}. Set "
                "`adapter.rank` and `adapter.alpha` to the file's."
            )


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
        USE_DORA: False,
        "target_modules": None,
        "init_from": None,
    }


def build_adapter(transformer: nn.Module, config: Mapping[str, Any], *, pipeline: Any = None) -> Adapter:
    """Freeze ``transformer`` and add a fresh adapter, which changes nothing until it is trained.

    ``config`` is the validated adapter section: type, algo (LyCORIS), rank, alpha, dropout, target_modules, init_from.
    With ``init_from`` the values come from that file or folder, which must fit the section; ranks and strengths
    that differ between layers, and rank-stabilised scaling, are the file's.

    Args:
        pipeline: as `load_adapter` takes it, for ``init_from``.

    Raises:
        AdapterError: no layer matches, the transformer already carries an adapter, or ``init_from`` does not fit.
    """
    check_bare(transformer)
    config = {USE_DORA: False, **config}
    if config["type"] == "lycoris" and config["algo"] is None:
        config["algo"] = "locon"
    targets = find_targets(transformer, config["target_modules"])
    start = None
    if config["init_from"] is not None:
        start = as_trained(read_adapter(Path(config["init_from"]), pipeline=pipeline, network=transformer))
    adapter: PeftAdapter | LycorisAdapter
    if config["type"] == "lycoris":
        adapter = LycorisAdapter(transformer, config, build_network(transformer, config, targets), targets)
    else:
        peft = peft_config(config, targets) if start is None else starting_config(start, config, targets)
        adapter = PeftAdapter(transformer, config, peft, targets)
    try:
        if isinstance(adapter, PeftAdapter):
            require_rows(dict(zip(targets, adapter.layers, strict=True)), adapter.name)
        if start is not None:
            load_values(adapter, start)
    except BaseException:
        adapter.detach()
        raise
    return adapter
