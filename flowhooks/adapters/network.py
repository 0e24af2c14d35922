"""Tell a network's class and the shapes of its layers' weights: from the network, its folder, or a file's header."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin
from torch import nn

from flowhooks.adapters.fit import first_network, transformer_shapes
from flowhooks.adapters.names import ADAPTER_FILES, NETWORK_KEY, TRANSFORMER_KEY, read_json
from flowhooks.adapters.outline import meta_copy
from flowhooks.errors import AdapterError
from flowhooks.naming import family_of
from flowhooks.reading import MAX_DOCUMENT, read_text

#: Most of anything that a configuration may count, and most layers: a network is built from it to learn its shapes.
MOST = 10_000_000
MOST_LAYERS = 256
_ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Describes a network without its weights.

    Args:
        kind: name of its class; None if that is not known.
        shapes: shapes of the weights of its Linear layers and convolutions, by name; empty if they are not known.
    """

    kind: str | None
    shapes: Mapping[str, tuple[int, ...]]


def require_layers(shapes: Mapping[str, tuple[int, ...]], network: Network, *, origin: str = "") -> None:
    """Raise `AdapterError` for a layer that a network does not have, or has with other sides.

    Args:
        shapes: shape of each changed weight, by the layer's name; that of a convolution may be flattened.
        network: nothing is said where its layers are not known.
        origin: what stands before the message.
    """
    for name, shape in shapes.items() if network.shapes else ():
        own = network.shapes.get(name)
        if own is None or (shape[0], math.prod(shape)) != (own[0], math.prod(own)):
            has = "has no such layer" if own is None else f"has one of shape {list(own)}"
            raise AdapterError(
                f"{origin}`{name}` changes a weight of shape {list(shape)}, and {network.kind or 'the model'} {has}. "
                "It was made for another model: give the one that it was trained on with `--model`."
            )


def network_of(module: nn.Module) -> Network:
    """Describe a network, with or without an adapter on it."""
    bare = meta_copy(module).named_modules()
    shapes = {name: tuple(layer.weight.shape) for name, layer in bare if isinstance(layer, _ADAPTABLE)}
    return Network(kind=type(module).__name__, shapes=shapes)


def network_in(folder: Path, component: str | None = None) -> Network:
    """Describe the network in a pipeline's folder, or in a folder of its own, from the headers of its weights.

    Raises:
        AdapterError: it holds none.
    """
    component = component or first_network(folder)
    for place, inside in ((folder, component), (folder.parent, folder.name)):
        if any((place / inside / name).is_file() for name in ADAPTER_FILES):
            # The folder of a run, say.
            continue
        shapes = transformer_shapes(place, inside)
        if shapes:
            weights = {k.removesuffix(".weight"): v for k, v in shapes.items() if k.endswith(".weight") and len(v) > 1}
            return Network(kind=_class_in(place / inside / "config.json"), shapes=weights)
    raise AdapterError(f"{folder}: has no {component}/*.safetensors. Give the folder of a pipeline.")


def _class_in(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        found = read_json(read_text(file, MAX_DOCUMENT), origin=str(file)).get("_class_name")
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file}: cannot be read ({error}). Copy or download it again.") from error
    return found if isinstance(found, str) else None


def network_header(network: nn.Module) -> dict[str, str]:
    """Return what a file's header keeps of the network that it is for: its class and, of Diffusers' networks, the
    configuration, without what belongs to this machine."""
    kind = type(network).__name__
    if not isinstance(network, ConfigMixin):
        return {TRANSFORMER_KEY: kind}
    settings = {
        key: value
        for key, value in network.config.items()
        if not key.startswith("_") and key not in ("quantization_config", "pretrained_model_name_or_path")
    }
    try:
        return {TRANSFORMER_KEY: kind, NETWORK_KEY: json.dumps(settings, sort_keys=True)}
    except TypeError:
        return {TRANSFORMER_KEY: kind}


def network_told(header: Mapping[str, str], origin: str) -> Network | None:
    """Describe the network that a file's header tells of; None if it tells nothing.

    Raises:
        AdapterError: its configuration makes no network of that class.
    """
    kind = header.get(TRANSFORMER_KEY)
    if kind is None or NETWORK_KEY not in header:
        return None if kind is None else Network(kind=kind, shapes={})
    try:
        return _built(kind, header[NETWORK_KEY])
    except AdapterError as error:
        raise AdapterError(f"{origin}: header `{NETWORK_KEY}`: {error}") from error


@lru_cache(maxsize=4)
def _built(kind: str, text: str) -> Network:
    """Describe a network of Diffusers by its configuration, JSON."""
    import diffusers

    # A header may come from a stranger: it names one of these classes, and no other is built.
    built: Any = getattr(diffusers, kind, None) if family_of(kind) is not None else None
    if built is None:
        return Network(kind=kind, shapes={})
    settings = read_json(text, origin="it")
    if (large := _too_large(settings)) is not None:
        raise AdapterError(f"`{large}` is {settings[large]}. The file is damaged.")
    try:
        # Without weights: only names and shapes are read.
        with torch.device("meta"):
            return network_of(built.from_config(settings))
    except Exception as error:
        # Each class fails in its own way on settings that it does not expect.
        raise AdapterError(
            f"it makes no {kind} ({type(error).__name__}: {error}). Give the pipeline's folder with `--model`."
        ) from error


def _too_large(settings: Mapping[str, Any]) -> str | None:
    """Return the name of a setting that would make building the network take long."""
    for key, value in settings.items():
        numbers = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, (int, float))]
        most = MOST_LAYERS if any(word in key for word in ("layers", "blocks", "depth", "experts", "stages")) else MOST
        if any(number > most for number in numbers):
            return key
    return None
