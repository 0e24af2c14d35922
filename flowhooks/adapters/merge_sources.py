"""Read the changes of adapter files to merge, without the model they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowhooks.adapters.adapter_file import AdapterFile, read_adapter
from flowhooks.adapters.base_weights import BaseWeights
from flowhooks.adapters.combine import Factors, hadamard
from flowhooks.adapters.dora import magnitude_of
from flowhooks.adapters.file_config import file_config, require_configured, require_listed
from flowhooks.adapters.load import attach_file
from flowhooks.adapters.lycoris_adapter import LycorisAdapter
from flowhooks.adapters.merge import change_of
from flowhooks.adapters.names import (
    LAYERS_KEY,
    NETWORK_KEY,
    TRANSFORMER_KEY,
    USE_DORA,
    digest_of,
    first_few,
    layer_name,
    lycoris_names,
    read_json,
    short_name,
)
from flowhooks.adapters.network import Network, network_in, network_told, require_layers
from flowhooks.adapters.outline import meta_layers
from flowhooks.adapters.peft_adapter import PeftAdapter
from flowhooks.errors import AdapterError
from flowhooks.reading import user_path

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class SourceAdapter:
    """Holds one adapter file, checked.

    Args:
        file: path it was read from.
        name: name in messages: a file or folder name without the folders it is in.
        digest: SHA-256 of its bytes.
        kind: ``lora``, ``loha``, ``lokr``, or LyCORIS' algorithm.
        rank: largest rank of its layers.
        transformer: class name of the model it was trained on, if the file says so.
        prefix: what Diffusers calls that model in its files.
        network: what its header tells of that model.
        shapes: shapes of the adapted weights, by layer name.
        low_rank: whether every layer's change is a product of two factors.
        base: reads the weights that it changes; None where it need not be known.
    """

    file: Path
    name: str
    digest: str
    kind: str
    rank: int
    transformer: str | None
    prefix: str
    network: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    low_rank: bool
    adapter: PeftAdapter | LycorisAdapter
    base: BaseWeights | None = None

    @torch.no_grad()
    def factors(self, layer: str) -> Factors:
        """Return the change of a layer's weight, ``[out, in]`` with a convolution's window counted as inputs, in
        float64. If it has no factors, one of the two is the whole change and the other an identity."""
        place = self.adapter.targets.index(layer)
        pair = _pair(self.adapter, place)
        if pair is not None:
            down, up, scale = pair
            return Factors(down=down.double().flatten(1), up=scale * up.double().flatten(1))
        product = _product(self.adapter, place)
        if product is not None and product[0].rank * product[1].rank < min(
            product[0].down.shape[1], len(product[0].up)
        ):
            return hadamard(*product)
        weight = None if self.base is None else self.base.weight(layer)
        change = change_of(self.adapter, place, weight).double().flatten(1)
        outputs, inputs = change.shape
        if outputs <= inputs:
            return Factors(down=change, up=torch.eye(outputs, dtype=change.dtype))
        return Factors(down=torch.eye(inputs, dtype=change.dtype), up=change)


def read_sources(paths: Sequence[Path], model: Path | None = None) -> list[SourceAdapter]:
    """Read adapter files of any format.

    The names in LyCORIS files have no dots: they are looked up in the file's own header if flowhooks wrote
    it, in the other files, and in ``model``.

    Args:
        model: a pipeline's folder, of whose transformer only the weights' names and shapes are read; it tells the
            layers of files with names of other programs too, where their headers do not.

    Raises:
        AdapterError: a file is damaged, cannot be merged, or its layers are unknown.
    """
    network = None if model is None else network_in(model)
    files = [read_adapter(path, network=network) for path in paths]
    of_model: Shapes = {} if network is None else dict(network.shapes)
    own_shapes = [{**of_model, **_of_header(file)} for file in files]
    elsewhere: Shapes = {}
    for file, own in zip(files, own_shapes, strict=True):
        elsewhere |= own if file.kind == "lycoris" else _shapes(file, own)
    for file, own in zip(files, own_shapes, strict=True):
        _require_whole(file, _shapes(file, {**elsewhere, **own} if file.kind == "lycoris" else own), network)
    base = None if model is None else BaseWeights(user_path(model))
    return [
        _source(file, _shapes(file, {**elsewhere, **own} if file.kind == "lycoris" else own), base)
        for file, own in zip(files, own_shapes, strict=True)
    ]


def _require_whole(file: AdapterFile, shapes: Shapes, network: Network | None) -> None:
    """Raise `AdapterError` for a file that lacks a layer which its configuration names, or has one that its network
    lacks."""
    network = network or network_told(file.header, str(file.path))
    if network is not None:
        require_layers(shapes, network, origin=f"{file.path}: ")
    if file.kind == "lycoris":
        if LAYERS_KEY in file.header:
            require_listed(file, _of_header(file))
        return
    firsts = {layer_name(key): len(t) for key, t in file.tensors.items() if key.endswith("lora_A.weight")}
    ranks = {name: firsts.get(name) for name in shapes}
    require_configured(file, file_config(file), ranks, () if network is None else network.shapes)


def _of_header(file: AdapterFile) -> Shapes:
    if LAYERS_KEY not in file.header:
        return {}
    document = read_json(file.header[LAYERS_KEY], origin=f"{file.path}: header `{LAYERS_KEY}`")
    return {name: tuple(shape) for name, shape in document.items()}


def _source(file: AdapterFile, shapes: Shapes, base: BaseWeights | None) -> SourceAdapter:
    adapter = attach_file(meta_layers(shapes), file, whole=False)
    dora = adapter.config[USE_DORA]
    if dora and base is None:
        raise AdapterError(
            f"{file.path}: is a DoRA, whose change of a weight depends on that weight. Give the folder of the pipeline "
            "that it was trained on with `--model`."
        )
    pairs = [_pair(adapter, place) for place in range(len(adapter.targets))]
    ranks = [pair[0].shape[0] for pair in pairs if pair is not None]
    return SourceAdapter(
        file=file.path,
        name=short_name(file.path),
        digest=digest_of(file.path),
        kind="dora" if dora else adapter.config["algo"] if adapter.kind == "lycoris" else adapter.kind,
        rank=max([*ranks, adapter.config["rank"]]),
        transformer=file.header.get(TRANSFORMER_KEY),
        prefix=file.network,
        network={key: file.header[key] for key in (TRANSFORMER_KEY, NETWORK_KEY) if key in file.header},
        shapes={name: shapes[name] for name in adapter.targets},
        low_rank=None not in pairs,
        adapter=adapter,
        base=base if dora else None,
    )


def _pair(adapter: PeftAdapter | LycorisAdapter, place: int) -> tuple[Tensor, Tensor, float] | None:
    """Return the two matrices of a layer and the scale of their product, if it has them."""
    if isinstance(adapter, LycorisAdapter):
        lora: Any = adapter.network.loras[place]
        if not hasattr(lora, "lora_down") or lora.tucker:
            return None
        return lora.lora_down.weight, lora.lora_up.weight, lora.scale * float(lora.scalar)
    layer: Any = adapter.layers[place]
    if adapter.kind != "lora" or magnitude_of(layer, adapter.name) is not None:
        return None
    if layer.lora_B[adapter.name].bias is not None:
        raise AdapterError(
            f"The LoRA on `{adapter.targets[place]}` has a bias (`lora_bias`), which a merged file has no place for."
        )
    return layer.lora_A[adapter.name].weight, layer.lora_B[adapter.name].weight, layer.scaling[adapter.name]


def _product(adapter: PeftAdapter | LycorisAdapter, place: int) -> tuple[Factors, Factors] | None:
    """Return the two low-rank changes whose elementwise product is the change of a LoHa layer, scale included."""
    if adapter.kind == "lora":
        return None
    if isinstance(adapter, LycorisAdapter):
        owner: Any = adapter.network.loras[place]
        found = {name: parameter for name, parameter in owner.named_parameters()}
        scale = owner.scale * float(owner.scalar)
    else:
        owner = adapter.layers[place]
        found = {name.removesuffix(f".{adapter.name}"): parameter for name, parameter in owner.named_parameters()}
        scale = owner.scaling[adapter.name]
    if "hada_w1_a" not in found or "hada_t1" in found:
        return None
    first, second = (Factors(down=found[f"hada_w{i}_b"].double(), up=found[f"hada_w{i}_a"].double()) for i in (1, 2))
    return Factors(down=first.down, up=scale * first.up), second


def _shapes(file: AdapterFile, known: Shapes) -> Shapes:
    """Return shapes of the adapted weights, by layer name; for layers in ``known``, the shapes there."""
    parts: dict[str, Shapes] = {}
    lycoris = file.kind == "lycoris"
    for key, tensor in file.tensors.items():
        name = key.split(".")[0] if lycoris else layer_name(key)
        parts.setdefault(name, {})[key.removeprefix(f"{name}.")] = tuple(tensor.shape)
    if not lycoris:
        return {name: known.get(name) or _weight_shape(file.path, name, own) for name, own in parts.items()}
    names = lycoris_names(file.path, parts, known)
    return {names[name]: known[names[name]] for name in parts}


def _weight_shape(file: Path, name: str, parts: Shapes) -> tuple[int, ...]:
    """Return the shape of a weight, from those of the tensors that change it."""
    try:
        if "lora_A.weight" in parts:
            return (parts["lora_B.weight"][0], *parts["lora_A.weight"][1:])
        if "hada_t1" in parts:
            return (parts["hada_w1_a"][1], parts["hada_w1_b"][1], *parts["hada_t1"][2:])
        if "hada_w1_a" in parts:
            return (parts["hada_w1_a"][0], parts["hada_w1_b"][1])
        first = parts.get("lokr_w1") or (parts["lokr_w1_a"][0], parts["lokr_w1_b"][1])
        if "lokr_t2" in parts:
            second = (parts["lokr_w2_a"][1], parts["lokr_w2_b"][1], *parts["lokr_t2"][2:])
        else:
            second = parts.get("lokr_w2") or (parts["lokr_w2_a"][0], parts["lokr_w2_b"][1])
        return (first[0] * second[0], first[1] * second[1], *second[2:])
    except (KeyError, IndexError):
        raise AdapterError(
            f"{file}: `{name}` lacks a matrix, it has {first_few(sorted(parts))}. The file is incomplete or of another "
            "kind than LoRA, LoHa and LoKr."
        ) from None
